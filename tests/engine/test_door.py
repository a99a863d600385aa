"""Whoever is refused is told when the queue will have moved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chunkcache.config import EngineSettings
from chunkcache.engine import door as doors
from chunkcache.engine.door import Door
from chunkcache.errors import Overloaded

NOW = 1000.0


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "time", SimpleNamespace(perf_counter=lambda: NOW))


def served_for(seconds: float, *, is_part: bool = False, ran: bool = True) -> Any:
    started_at = NOW - seconds
    return SimpleNamespace(is_part=is_part, kv=object() if ran else None, started_at=started_at)


def refused(door: Door) -> Overloaded:
    with pytest.raises(Overloaded, match="queue_limit = 3") as caught:
        for _ in range(6):
            door.take_place()
    return caught.value


def test_before_anything_was_served_it_is_a_second() -> None:
    assert refused(Door(EngineSettings(queue_limit=3, max_running=2))).retry_after_s == 1


def test_it_is_service_time_times_place_in_the_queue_over_those_side_by_side() -> None:
    door = Door(EngineSettings(queue_limit=3, max_running=2))
    door.take_place()
    door.let_out(served_for(9.8))
    assert refused(door).retry_after_s == 20  # 9.8 s × the fourth place ÷ 2, rounded up


def test_parts_and_those_that_never_ran_say_nothing_about_it() -> None:
    door = Door(EngineSettings(queue_limit=3, max_running=2))
    door.take_place()
    door.let_in(served_for(0, is_part=True), lambda request: None)
    door.let_out(served_for(500, is_part=True))
    door.let_out(served_for(500, ran=False))
    assert refused(door).retry_after_s == 1
