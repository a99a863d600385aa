"""Failures of tiers: a counter and a warning each, never a failed request."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import structlog

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.base import TierAtRest

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.chunk import ChunkKey
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import Tier

log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class Failures:
    """Of all tiers of a store. Thread-safe."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def note(self, kind: str, tier: str, error: StoreError) -> None:
        """A `read` or a `write` failed."""
        self._metrics.store_errors.labels(tier, kind).inc()
        if isinstance(error, TierAtRest):
            return  # said once, when it was put to rest
        effect = "counts as a miss" if kind == "read" else "the write was dropped"
        log.warning(f"store_{kind}_failed", tier=tier, reason=error.message, effect=effect)

    def miss(self, tier: str, key: ChunkKey, error: StoreError) -> str:
        """Reading a record failed. Returns: the reason of the miss."""
        if not isinstance(error, CorruptRecord):
            self.note("read", tier, error)
            return "error"
        self._metrics.store_errors.labels(tier, "corrupt").inc()
        log.warning(
            "record_corrupt", tier=tier, key=key.hex[:12], reason=error.message, action="dropped"
        )
        return "corrupt"

    def asked(self, tier: Tier, question: Callable[[], _T], otherwise: _T) -> _T:
        """What a tier answers; of one that fails, which is noted, `otherwise`."""
        try:
            return question()
        except StoreError as error:
            self.note("read", tier.name, error)
            return otherwise

    def queue_full(self, tier: str, limit: int, limit_bytes: int) -> None:
        """A record found no place in a tier's queue."""
        self._metrics.store_errors.labels(tier, "queue_full").inc()
        log.warning(
            "store_queue_full", tier=tier, limit=limit, limit_bytes=limit_bytes,
            effect="the record is not written to this tier",
            knob="store.write_queue_limit, store.write_queue_bytes",
        )  # fmt: skip

    def fault(self, tier: str, error: Exception) -> StoreError:
        """A write raised what no tier should. Returns: what it is to raise."""
        self._metrics.store_errors.labels(tier, "write").inc()
        log.error("store_writer_fault", tier=tier, error=repr(error))
        return StoreError(f"store: the writer failed: {error!r}")
