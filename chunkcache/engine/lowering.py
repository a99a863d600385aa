"""KV of new chunks on its way down from the device, beside the passes that follow.

On a GPU a copy to ordinary memory keeps the engine from all else until it is done. Here it goes to
pinned memory, on a stream of its own; a thread waits for it, takes it over into ordinary memory and
hands it on. Buffers are few: who brings more waits until one is free.
"""

from __future__ import annotations

import queue
import threading
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from chunkcache.cores import one_core
from chunkcache.engine.faults import as_engine_error
from chunkcache.engine.lane import StagingRing, has_streams, lane_for

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from chunkcache.engine.lane import Mark
    from chunkcache.errors import ChunkCacheError

    Give = Callable[[torch.Tensor], None]
    Fail = Callable[[ChunkCacheError], None]

log = structlog.get_logger(__name__)

_BUFFERS = 2  # one is emptied while the next one is filled


class Lowers(Protocol):
    """Brings what a pass has made to host memory."""

    def __call__(self, made: torch.Tensor, give: Give, fail: Fail) -> None:
        """`give` its copy, or say that it failed; here, or later in another thread.

        Args:
            made: contiguous, written by work that the calling thread has queued; not written again.
        """
        ...


def at_once(made: torch.Tensor, give: Give, fail: Fail) -> None:
    """See `Lowers`. Waits for it."""
    give(made.cpu())


@dataclass(slots=True, eq=False)
class _Coming:
    """A copy that is queued on the device."""

    made: torch.Tensor  # kept until it is read
    buffer: StagingRing  # of one buffer
    pinned: torch.Tensor
    mark: Mark | None
    give: Give
    fail: Fail


class Lowering:
    """`Lowers` for an engine's thread. `close` hands on what is on its way.

    Memory: `_BUFFERS` times the largest chunk, pinned, and as much on the device meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_late = has_streams(device)
        if not self._is_late:
            return
        self._lane = lane_for(device)
        self._free: queue.SimpleQueue[StagingRing] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(StagingRing(1, pinned=True))
        self._coming: queue.SimpleQueue[_Coming | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="chunkcache-lowering", daemon=True)
        self._thread.start()

    def __call__(self, made: torch.Tensor, give: Give, fail: Fail) -> None:
        """See `Lowers`. Waits where all buffers are on their way."""
        if not self._is_late:
            at_once(made, give, fail)
            return
        buffer = self._free.get()
        try:
            size_bytes = made.numel() * made.element_size()
            pinned = buffer.take(size_bytes).view(made.dtype).view(made.shape)
            self._lane.pages_freed()  # what has been queued so far writes it
            with self._lane.work():
                pinned.copy_(made, non_blocking=True)
            mark = self._lane.mark()
        except BaseException:
            self._free.put(buffer)
            raise
        self._coming.put(_Coming(made, buffer, pinned, mark, give, fail))

    def close(self) -> None:
        """Nobody brings more. Waits for what is on its way. Idempotent."""
        if self._is_late:
            self._coming.put(None)
            self._thread.join()

    def _run(self) -> None:
        with one_core():  # beside the engine
            while (one := self._coming.get()) is not None:
                try:
                    one.give(self._taken_over(one))
                except Exception as error:  # this one's alone: the next ones are to come, too
                    log.error("lowering_failed", traceback=traceback.format_exc())
                    one.fail(as_engine_error(error))
                del one

    def _taken_over(self, one: _Coming) -> torch.Tensor:
        """What has come, in memory of its own; its buffer is free then."""
        try:
            if one.mark is not None:
                one.mark.synchronize()
            return one.pinned.clone()
        finally:
            self._free.put(one.buffer)
