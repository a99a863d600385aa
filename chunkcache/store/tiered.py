"""All tiers as one store: look up from the top, promote on a hit, write behind.

The only file that knows how many tiers there are. Disk writes go through one thread with a bounded
queue; a request never waits for the disk to write. A disk tier that fails is a miss, a counter and
a warning, never a failed request.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import structlog

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.cost import CostModel
from chunkcache.store.write_behind import WriteBehind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import Tier, TierUsage

log = structlog.get_logger(__name__)

_DISK_OVERHEAD_BYTES = 256 * 1024  # of one record: header, and slabs rounded up to whole pages


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """What a look-up found: a record and its tier, or the reason there is none.

    Reasons: `absent`, `corrupt` (dropped, will be made again), `slower` (it is there, but reading
    it takes longer than computing it, as measured), `error` (the tier failed).
    """

    record: ChunkKV | None
    tier: str | None
    miss: str | None


class TieredStore:
    """Host over disk (or host alone). Thread-safe."""

    def __init__(
        self, host: Tier, disk: Tier | None, metrics: Metrics, *, write_queue_limit: int = 64
    ) -> None:
        self._host = host
        self._disk = disk
        self._metrics = metrics
        self._limit = write_queue_limit
        self._behind = WriteBehind(self._write_to_disk, write_queue_limit) if disk else None
        self.cost = CostModel()
        for tier in (host, disk):
            if tier is not None:  # asked when they are scraped: others write the same disk
                used = metrics.tier_bytes.labels(tier.name)
                used.set_function(partial(self._scraped, tier, attrgetter("size_bytes")))
                held = metrics.tier_records.labels(tier.name)
                held.set_function(partial(self._scraped, tier, attrgetter("records")))

    def fetch_many(self, keys: Sequence[ChunkKey]) -> list[Lookup]:
        """`fetch` for each key, in order."""
        return [self.fetch(key) for key in keys]

    def fetch(self, key: ChunkKey) -> Lookup:
        """Look from the top down; a hit on disk is promoted to the host tier."""
        self._metrics.chunk_queries.labels("host").inc()
        record = self._host.get(key)
        if record is not None:
            self._metrics.chunk_hits.labels("host").inc()
            return Lookup(record, "host", None)
        lookup = self._fetch_from_disk(key)
        if lookup.miss is not None:
            self._metrics.chunk_misses.labels(lookup.miss).inc()
        return lookup

    def _fetch_from_disk(self, key: ChunkKey) -> Lookup:
        if self._disk is None:
            return Lookup(None, None, "absent")
        self._metrics.chunk_queries.labels("disk").inc()
        if not self.cost.load_pays("disk", len(key.token_ids)):
            return Lookup(None, None, "slower" if self._on_disk(key) else "absent")
        began = time.perf_counter()
        try:
            record = self._disk.get(key)
        except CorruptRecord as error:
            self._metrics.store_errors.labels("corrupt").inc()
            log.warning("record_corrupt", key=key.hex[:12], reason=error.message, action="dropped")
            return Lookup(None, None, "corrupt")
        except StoreError as error:
            self._note_read_error(error)
            return Lookup(None, None, "error")
        if record is None:
            return Lookup(None, None, "absent")
        self.cost.observe_load("disk", record.num_tokens, time.perf_counter() - began)
        self._metrics.chunk_hits.labels("disk").inc()
        self._host.put(record)
        return Lookup(record, "disk", None)

    def offer(self, record: ChunkKV, *, wait: bool = False) -> bool:
        """Keep a new record: in the host tier at once, on disk soon.

        With `wait`, returns when the disk tier has published it, and raises what that raised.
        Without, a full queue drops the disk copy (counted, warned about); the host copy stays.

        Returns:
            Whether the lowest tier holds it or will.

        Raises:
            StoreError: only with `wait`.
        """
        kept = self._host.put(record)
        if self._behind is None:
            return kept
        try:
            done = self._behind.offer(record, wait_for_place=wait)
        except StoreError as error:
            if wait:
                raise
            self._note_write_error(error)
            return False
        if done is None:
            self._metrics.store_errors.labels("queue_full").inc()
            log.warning(
                "store_queue_full", limit=self._limit, knob="store.write_queue_limit",
                effect="the record stays in memory only",
            )  # fmt: skip
            return False
        return done.result() if wait else True

    def contains(self, key: ChunkKey) -> str | None:
        """Name of the highest tier that holds the record; not a use."""
        if self._host.contains(key):
            return self._host.name
        return self._disk.name if self._disk is not None and self._on_disk(key) else None

    def is_durable(self, key: ChunkKey) -> bool:
        """Whether the record would survive this process; without a disk, whether it is held."""
        return self._host.contains(key) if self._disk is None else self._on_disk(key)

    def has_room(self, size_bytes: int) -> bool:
        """Whether the lowest tier could take another record without evicting one.

        Args:
            size_bytes: of its KV. On disk it needs a little more, for which an upper bound of
                1 % and 256 KiB is taken.

        Raises:
            StoreError: the disk tier cannot be read.
        """
        if self._disk is None:
            usage = self._host.usage()
            return usage.size_bytes + size_bytes <= usage.capacity_bytes
        usage = self._disk.usage()
        needed = size_bytes + size_bytes // 100 + _DISK_OVERHEAD_BYTES
        return usage.size_bytes + needed <= usage.capacity_bytes

    def flush(self) -> None:
        """Wait until everything offered so far has been written or dropped."""
        if self._behind is not None:
            self._behind.flush()

    def close(self) -> None:
        """Write what is queued, then close the tiers. Idempotent.

        Raises:
            StoreError: the disk tier could not flush; everything is closed all the same.
        """
        try:
            if self._behind is not None:
                self._behind.close()
            if self._disk is not None:
                self._disk.close()
        finally:
            self._host.close()

    def _write_to_disk(self, record: ChunkKV) -> bool:
        assert self._disk is not None
        try:
            return self._disk.put(record)
        except StoreError as error:
            self._note_write_error(error)
            raise
        except Exception as error:
            self._metrics.store_errors.labels("write").inc()
            log.error("store_writer_fault", error=repr(error))
            raise StoreError(f"store: the writer failed: {error!r}") from error

    def _on_disk(self, key: ChunkKey) -> bool:
        assert self._disk is not None
        try:
            return self._disk.contains(key)
        except StoreError as error:
            self._note_read_error(error)
            return False

    def _note_read_error(self, error: StoreError) -> None:
        self._metrics.store_errors.labels("read").inc()
        log.warning("store_read_failed", reason=error.message, effect="counts as a miss")

    def _note_write_error(self, error: StoreError) -> None:
        self._metrics.store_errors.labels("write").inc()
        log.warning("store_write_failed", reason=error.message, effect="the write was dropped")

    def _scraped(self, tier: Tier, of: Callable[[TierUsage], int]) -> float:
        """How full a tier is now; NaN, which is how Prometheus says unknown, when it fails."""
        try:
            return of(tier.usage())
        except StoreError as error:
            self._note_read_error(error)
            return math.nan
