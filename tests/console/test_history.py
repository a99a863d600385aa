"""Figures over time: taken when due, bounded, and what `/metrics` says."""

from __future__ import annotations

import json
import math

from chunkcache.console.history import INTERVAL_S, LIMIT, History
from chunkcache.metrics import Metrics


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_sample_is_what_the_counters_stand_at() -> None:
    metrics = Metrics()
    history = History(metrics)
    metrics.chunk_queries.labels("host").inc(5)
    metrics.chunk_hits.labels("host").inc(3)
    metrics.chunk_queries.labels("disk").inc(2)
    metrics.chunk_misses.labels("absent").inc(2)
    metrics.evictions.labels("host").inc(4)
    metrics.tokens.labels("reused").inc(70)
    metrics.requests.labels("ok").inc()
    metrics.tier_bytes.labels("host").set_function(lambda: 123)
    metrics.tier_bytes.labels("disk").set_function(lambda: math.nan)  # it cannot be read
    metrics.tier_records.labels("host").set_function(lambda: 7)
    (sample,) = history.samples("hour")
    assert sample.queries == {"host": 5, "disk": 2}
    assert sample.hits == {"host": 3}
    assert sample.misses == {"absent": 2}
    assert sample.evictions == {"host": 4}
    assert sample.rows == {"reused": 70}
    assert sample.requests == {"ok": 1}
    assert sample.size_bytes == {"host": 123, "disk": None}
    assert sample.records == {"host": 7}
    json.dumps(sample.model_dump(mode="json"), allow_nan=False)


def test_a_sample_is_taken_only_when_one_is_due() -> None:
    clock, metrics = Clock(), Metrics()
    read = []
    metrics.tier_bytes.labels("disk").set_function(lambda: read.append(1) or 0)
    history = History(metrics, clock=clock)
    for _ in range(1000):
        history.note()
    assert len(read) == len(history.samples("hour")) == len(history.samples("days")) == 1
    clock.now_s += INTERVAL_S["hour"]
    history.note()
    assert (len(history.samples("hour")), len(history.samples("days"))) == (2, 1)
    clock.now_s += INTERVAL_S["days"]
    assert (len(history.samples("hour")), len(history.samples("days"))) == (3, 2)


def test_memory_is_bounded_and_the_newest_are_kept() -> None:
    clock, metrics = Clock(), Metrics()
    history = History(metrics, clock=clock)
    for number in range(LIMIT + 50):
        metrics.requests.labels("ok").inc()
        history.note()
        clock.now_s += INTERVAL_S["hour"]
        assert len(history._rings["hour"]) == min(number + 1, LIMIT)
    clock.now_s -= INTERVAL_S["hour"]  # none is due
    samples = history.samples("hour")
    assert len(samples) == LIMIT
    assert [s.requests["ok"] for s in samples] == list(range(51, LIMIT + 51))
