"""Threads that bring chunks up from the tiers below, layer by layer.

The lowest layer of what is waited for comes first, so that a forward pass can begin with it while
the others are still being read.
"""

from __future__ import annotations

import threading
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import torch

from chunkcache.chunk import ChunkKV
from chunkcache.cores import one_core
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.reader import DTYPES, kv_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.chunk import ChunkKey
    from chunkcache.engine.chunk_pages import ChunkPages
    from chunkcache.engine.lane import StagingRing
    from chunkcache.engine.resident import Resident
    from chunkcache.store.base import RecordReader

log = structlog.get_logger(__name__)

TASK_BYTES = 4 << 20  # of KV that a thread brings up at a time, at most, but for a single layer
_THREADS = 2


@dataclass(slots=True)
class Brought:
    """What came up through one codec."""

    size_bytes: int = 0  # of KV, decoded
    busy_s: float = 0.0  # of the loader's threads together


@dataclass(slots=True, eq=False)
class Batch:
    """Chunks that one prompt brings up from one tier, since `began_at` (`time.perf_counter`).

    All three are called in a loader's thread: `on_record` with every chunk that is there whole, for
    which all of it is kept in memory meanwhile; `on_failure` with every one that is not; `on_end`
    once, when all of them have settled. What one of them raises is logged: the chunk settles.
    """

    tier: str
    began_at: float
    on_record: Callable[[Batch, ChunkKV], None] | None = None
    on_failure: Callable[[Batch, ChunkKey, Exception], None] = lambda *_: None
    on_end: Callable[[Batch], None] = lambda _: None
    brought: dict[str, Brought] = field(default_factory=dict)  # by codec
    seconds: float = 0.0  # from its beginning to the end of its last chunk
    failed: int = 0
    open: int = 0  # chunks that have not settled

    @property
    def size_bytes(self) -> int:
        """Of KV that has been brought up."""
        return sum(part.size_bytes for part in self.brought.values())


@dataclass(slots=True, eq=False)
class _Load:
    """One chunk on its way up."""

    reader: RecordReader
    resident: Resident
    batch: Batch
    order: int
    lease: ExitStack  # the reader's
    kept: torch.Tensor | None = None  # all of it, where it is wanted whole, once it is begun
    next_layer: int = 0
    is_busy: bool = False
    busy_s: float = 0.0

    @property
    def rank(self) -> tuple[bool, int, int]:
        """What is only foreseen, or not wanted any more, comes last; then by age, then by layer."""
        return self.resident.leases < 2, self.order, self.next_layer


class Loader:
    """Brings records up into chunk pages. Thread-safe.

    Args:
        on_settled: called in a loader's thread whenever a chunk has settled.
        clock: seconds, the same as `Batch.began_at` tells.
    """

    def __init__(
        self, pages: ChunkPages, *, threads: int = _THREADS,
        on_settled: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._pages = pages
        self._on_settled = on_settled
        self._clock = clock
        self._changed = threading.Condition()
        self._loads: list[_Load] = []
        self._batches = 0
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"chunkcache-loader-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def load(self, batch: Batch, chunks: Sequence[tuple[RecordReader, Resident]]) -> None:
        """Begin to bring up chunks that `ChunkPages.expect` made; their readers are ours now.

        A chunk that cannot be brought up is settled with the reason, here or later; nothing raises.
        """
        with self._changed:
            batch.open = len(chunks)
            self._batches += 1
            loads = [self._load(batch, reader, resident) for reader, resident in chunks]
            if not self._is_closed:
                self._loads += loads
                self._changed.notify_all()
                return
        for load in loads:
            self._end(load, "closed")

    def close(self) -> None:
        """Give up what is not there yet, and end the threads. Idempotent."""
        with self._changed:
            self._is_closed = True
            idle = [load for load in self._loads if not load.is_busy]
            self._loads = [load for load in self._loads if load.is_busy]
            self._changed.notify_all()
        for load in idle:
            self._end(load, "closed")
        for thread in self._threads:
            thread.join()

    def _load(self, batch: Batch, reader: RecordReader, resident: Resident) -> _Load:
        lease = ExitStack()
        lease.enter_context(reader)
        return _Load(reader, resident, batch, self._batches, lease)

    # ------------------------------------------------------------ loader threads

    def _run(self) -> None:
        with one_core():  # beside the engine
            ring = self._pages.lane.new_ring()
            while (load := self._next()) is not None:
                self._advance(load, ring)

    def _next(self) -> _Load | None:
        """The chunk to read from next, for this thread alone; None: it is over."""
        with self._changed:
            while not self._is_closed:
                waiting = [load for load in self._loads if not load.is_busy]
                if waiting:
                    chosen = min(waiting, key=lambda load: load.rank)
                    chosen.is_busy = True
                    return chosen
                self._changed.wait()
            return None

    def _advance(self, load: _Load, ring: StagingRing) -> None:
        """Bring up some layers more of a chunk."""
        failure: str | None = None
        began = self._clock()
        try:
            self._read(load, ring)
        except (CorruptRecord, StoreError) as error:
            failure = "corrupt" if isinstance(error, CorruptRecord) else "error"
            _tell(load.batch.on_failure, load.batch, load.resident.key, error)
        except Exception as error:  # one odd record must not keep all others from coming
            failure = "error"
            log.error("load_failed", traceback=traceback.format_exc())
            _tell(load.batch.on_failure, load.batch, load.resident.key, error)
        with self._changed:
            load.is_busy = False
            load.busy_s += self._clock() - began
            ends = failure is not None or load.next_layer == load.reader.geometry.num_layers
            if not ends and self._is_closed:
                failure, ends = "closed", True
            if ends:
                self._loads.remove(load)
            else:
                self._changed.notify()
        if ends:
            self._end(load, failure)

    def _read(self, load: _Load, ring: StagingRing) -> None:
        of, first = load.reader.geometry, load.next_layer
        layer_bytes = of.bytes_per_token * load.reader.num_tokens // of.num_layers
        end = end_of_task(first, layer_bytes, of.num_layers)
        if load.batch.on_record is not None and load.kept is None:
            whole = kv_shape(of, load.reader.num_tokens)
            load.kept = torch.empty(whole, dtype=DTYPES[of.dtype])
        if load.kept is not None:
            out = load.kept[first:end]
        else:
            shape = (end - first, *kv_shape(of, load.reader.num_tokens)[1:])
            size = torch.Size(shape).numel() * of.itemsize_bytes
            out = ring.take(size).view(DTYPES[of.dtype]).view(shape)
        load.reader.read_layers(first, end, out)
        mark = self._pages.write(load.resident, first, out)
        if load.kept is None:
            ring.pass_on(mark)
        load.next_layer = end

    def _end(self, load: _Load, failure: str | None) -> None:
        load.lease.close()
        batch = load.batch
        if failure is None and load.kept is not None and batch.on_record is not None:
            reader = load.reader
            record = ChunkKV(
                reader.key, reader.geometry, load.kept, reader.stats, rounded_by=reader.rounded_by
            )
            _tell(batch.on_record, batch, record)
        self._pages.settle(load.resident, failure)
        with self._changed:
            if failure is None:
                part = batch.brought.setdefault(load.reader.codec, Brought())
                part.size_bytes += load.resident.num_tokens * load.reader.geometry.bytes_per_token
                part.busy_s += load.busy_s
            batch.failed += failure is not None
            batch.open -= 1
            is_last = batch.open == 0
        if is_last:
            batch.seconds = self._clock() - batch.began_at
            _tell(batch.on_end, batch)
        self._on_settled()


def end_of_task(first: int, layer_bytes: int, num_layers: int) -> int:
    """The layer behind those that a thread brings up together, from `first` on.

    Few to begin with, so that a pass soon has the lowest ones of all its chunks, then twice as much
    as there is: each task costs Python's time, whatever it moves. So a small rest comes along.
    """
    size = min(TASK_BYTES, max(TASK_BYTES // 4, 2 * first * layer_bytes))
    end = min(first + max(1, size // max(1, layer_bytes)), num_layers)
    return num_layers if (num_layers - end) * layer_bytes <= TASK_BYTES // 4 else end


def _tell(listener: Callable[..., None], *what: object) -> None:
    """Tell who wants to know; a fault there must not end the thread that brings up all others."""
    try:
        listener(*what)
    except Exception:
        log.error("load_listener_failed", traceback=traceback.format_exc())
