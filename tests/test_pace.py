"""When to come back, from how long others took."""

from __future__ import annotations

from chunkcache.pace import Pace


def test_without_a_measurement_it_is_a_second() -> None:
    assert Pace().wait_s(ahead=1000, side_by_side=1) == 1


def test_the_wait_is_service_time_times_place_over_those_side_by_side() -> None:
    pace = Pace()
    pace.observe(6.0)
    assert pace.wait_s(ahead=1, side_by_side=1) == 6
    assert pace.wait_s(ahead=10, side_by_side=4) == 15
    assert pace.wait_s(ahead=1, side_by_side=64) == 1
    assert pace.wait_s(ahead=10**9, side_by_side=1) == 600


def test_newer_measurements_take_over() -> None:
    pace = Pace()
    for service_s in [60.0] + [2.0] * 40:
        pace.observe(service_s)
    assert pace.wait_s(ahead=10, side_by_side=1) == 21  # 20.0…, rounded up
