"""How long passes take: by the clock, and by events that a device reaches later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import chunkcache.engine.pass_clock as pass_clock_module
from chunkcache.engine.attention import SequenceRows
from chunkcache.engine.pass_clock import EventClock, HostClock, PassSize, pass_clock


class Event:
    """What torch.cuda.Event does, on a device that has come as far as the test says."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.at_ms: float | None = None

    def record(self) -> None:
        self._device.queued_ms += 10
        self.at_ms = self._device.queued_ms

    def query(self) -> bool:
        assert self.at_ms is not None
        return self.at_ms <= self._device.now_ms

    def elapsed_time(self, end: Event) -> float:
        assert self.query() and end.query(), "torch would raise"
        assert self.at_ms is not None and end.at_ms is not None
        return end.at_ms - self.at_ms


class Device:
    """Every record comes 10 ms after the one before."""

    def __init__(self) -> None:
        self.now_ms = self.queued_ms = 0.0


def test_events_are_told_when_the_device_has_come_past_them() -> None:
    told: list[tuple[Any, ...]] = []
    device = Device()
    make: Any = lambda: Event(device)  # noqa: E731
    clock = EventClock(lambda *what: told.append(what), make)

    def run(size: PassSize | None, waited_s: float = 0.0) -> None:
        clock.begin()
        device.queued_ms += 100
        clock.end(size, waited_s)

    run(PassSize(70, 100))
    run(None)
    run(PassSize(80, 200), waited_s=0.01)  # the device stood still meanwhile
    run(PassSize(90, 300))
    assert told == [], "nobody asked the device yet"
    device.now_ms = 120.0
    run(None)
    assert told == [(70, 100, pytest.approx(0.11))]
    device.now_ms = device.queued_ms
    run(None)
    assert told[1:] == [(90, 300, pytest.approx(0.11))]


def test_on_a_cpu_a_pass_is_over_when_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    clock = pass_clock(torch.device("cpu"), lambda *what: told.append(what))
    assert isinstance(clock, HostClock)
    times = iter([5.0, 7.5, 8.0])
    stopped = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(pass_clock_module, "time", stopped)
    clock.begin()
    clock.end(PassSize(70, 100), 0.5)
    clock.begin()
    clock.end(None, 0.0)
    assert told == [(70, 100, 2.0)]


def test_only_whole_passes_of_many_rows_are_measured() -> None:
    def rows(first: int, end: int, **of: Any) -> SequenceRows:
        nothing: Any = None
        return SequenceRows(nothing, np.arange(first, end), nothing, nothing, **of)

    assert PassSize.of([rows(0, 3), rows(10, 74)]) == PassSize(67, 6 + sum(range(11, 75)))
    assert PassSize.of([rows(0, 63)]) is None
    assert PassSize.of([rows(0, 64, end_layer=2)]) is None
    assert PassSize.of([rows(0, 64, first_layer=2)]) is None
