"""Calls that hang are given up, and what a client raises becomes an error of the store."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import structlog

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.base import TierAtRest
from chunkcache.store.remote.breaker import Breaker, BreakerState
from chunkcache.store.remote.guard import Guard


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What hanging calls wait for; set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_that_hangs_is_left_behind_and_its_place_is_free_when_it_ends(
    released: threading.Event,
) -> None:
    guard = Guard("far", "read", Breaker(failures=9), 0.01, most_calls=1)
    ended = threading.Event()

    def hang() -> None:
        released.wait(20)
        ended.set()

    with pytest.raises(StoreError, match=r"far: a read took more than 0\.01 s"):
        guard.run(hang)
    with pytest.raises(StoreError, match="too many reads hang"):
        guard.run(lambda: 1)
    released.set()
    assert ended.wait(20)
    patient = Guard("far", "read", guard.breaker, 20.0, most_calls=1)
    assert patient.run(lambda: 1) == 1


def test_a_place_is_waited_for(released: threading.Event) -> None:
    guard = Guard("far", "read", Breaker(), 20.0, most_calls=1)
    inside = threading.Event()

    def slow() -> str:
        inside.set()
        released.wait(20)
        return "slow"

    answers: list[str] = []
    first = threading.Thread(target=lambda: answers.append(guard.run(slow)))
    first.start()
    assert inside.wait(20)
    second = threading.Thread(target=lambda: answers.append(guard.run(lambda: "quick")))
    second.start()
    assert answers == []
    released.set()
    first.join(20)
    second.join(20)
    assert sorted(answers) == ["quick", "slow"]


def test_errors_of_any_client_are_the_stores_and_count_towards_a_rest() -> None:
    guard = Guard("far", "write", Breaker(failures=2), 20.0)

    def fail() -> None:
        raise ZeroDivisionError("by a client")

    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(StoreError, match="far: ZeroDivisionError: by a client"):
                guard.run(fail)
        with pytest.raises(TierAtRest, match="far: writes rest for 5 s more"):
            guard.run(fail)
    assert [line["event"] for line in logs] == ["tier_at_rest"], "said once"
    assert guard.breaker.state is BreakerState.OPEN


def test_wrong_bytes_are_no_reason_to_rest_and_a_come_back_is_said() -> None:
    now_s = [0.0]
    guard = Guard("far", "read", Breaker(failures=1, rest_s=5.0, clock=lambda: now_s[0]), 20.0)

    def lie() -> None:
        raise CorruptRecord("not what was asked for")

    for _ in range(3):
        with pytest.raises(CorruptRecord):
            guard.run(lie)
    assert guard.breaker.state is BreakerState.CLOSED

    def fail() -> None:
        raise StoreError("gone")

    with pytest.raises(StoreError, match="gone"):
        guard.run(fail)
    now_s[0] = 5.0
    with structlog.testing.capture_logs() as logs:
        assert guard.run(lambda: "back") == "back"
    assert [(line["event"], line["kind"]) for line in logs] == [("tier_back", "read")]


def test_where_no_thread_can_be_started_a_call_fails_and_its_place_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = Guard("far", "read", Breaker(failures=9), 20.0, most_calls=1)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", start)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"far: no thread for a read.*limit of processes"):
                guard.run(lambda: 1)
    assert guard.run(lambda: 1) == 1
