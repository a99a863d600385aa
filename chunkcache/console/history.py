"""Figures of the cache over time: what the counters stood at, every few seconds of activity."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.metrics import MetricWrapperBase

    from chunkcache.metrics import Metrics

Span = Literal["hour", "days"]
INTERVAL_S: Final[dict[Span, float]] = {"hour": 5.0, "days": 300.0}
LIMIT: Final = 864
"""Samples kept for each span: 72 minutes and three days of uninterrupted use, more with pauses."""


class Sample(BaseModel):
    """What the counters of `/metrics` stood at. Counters grow from the start of the service."""

    at: float = Field(description="seconds since the epoch")
    queries: dict[str, float] = Field(description="look-ups, by tier")
    hits: dict[str, float] = Field(description="look-ups that found the chunk, by tier")
    misses: dict[str, float] = Field(description="chunks found in no tier, by reason")
    evictions: dict[str, float] = Field(description="records evicted, by tier")
    rows: dict[str, float] = Field(description="prompt rows reused, recomputed, computed")
    requests: dict[str, float] = Field(description="answers ended, by outcome")
    size_bytes: dict[str, float | None] = Field(description="held now, by tier; null: unreadable")
    records: dict[str, float | None] = Field(description="held now, by tier; null: unreadable")


class History:
    """Samples of a service's metrics in two ring buffers, fine and coarse. Thread-safe.

    A sample is taken by whoever calls `note` or `samples` when one is due: no thread, no timer. Its
    cost is a few dozen numbers and one read of each tier's usage.
    """

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._rings: dict[Span, deque[Sample]] = {s: deque(maxlen=LIMIT) for s in INTERVAL_S}
        self._due_s: dict[Span, float] = dict.fromkeys(INTERVAL_S, -math.inf)

    def note(self) -> None:
        """Take a sample for each span that is due one."""
        with self._lock:
            now_s = self._clock()
            due = [span for span in INTERVAL_S if now_s >= self._due_s[span]]
            if not due:
                return
            sample = self._take()
            for span in due:
                self._rings[span].append(sample)
                self._due_s[span] = now_s + INTERVAL_S[span]

    def samples(self, span: Span) -> list[Sample]:
        """Oldest first. The last one may be up to one interval old."""
        self.note()
        with self._lock:
            return list(self._rings[span])

    def _take(self) -> Sample:
        of = self._metrics
        return Sample(
            at=time.time(),
            queries=_counted(of.chunk_queries),
            hits=_counted(of.chunk_hits),
            misses=_counted(of.chunk_misses),
            evictions=_counted(of.evictions),
            rows=_counted(of.tokens),
            requests=_counted(of.requests),
            size_bytes=_measured(of.tier_bytes),
            records=_measured(of.tier_records),
        )


def _counted(counter: MetricWrapperBase) -> dict[str, float]:
    """A counter's values by its one label."""
    (family,) = counter.collect()
    return {
        next(iter(sample.labels.values())): sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def _measured(gauge: MetricWrapperBase) -> dict[str, float | None]:
    """A gauge's values by its one label; NaN, which JSON does not have, becomes None."""
    (family,) = gauge.collect()
    return {
        next(iter(sample.labels.values())): None if math.isnan(sample.value) else sample.value
        for sample in family.samples
    }
