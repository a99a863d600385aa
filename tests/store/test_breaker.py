"""The circuit breaker: when calls go through, by a clock that the test moves."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.store.remote.breaker import Breaker, BreakerState


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures=3, rest_s=5.0, longest_rest_s=15.0, clock=clock)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    return breaker


def test_it_opens_at_the_last_of_several_failures_in_a_row() -> None:
    breaker = Breaker(failures=3, clock=Clock())
    answers = [breaker.failed(), breaker.failed(), breaker.succeeded(), breaker.failed()]
    assert answers == [False, False, False, False] and breaker.allows(), "not in a row"
    assert breaker.state is BreakerState.CLOSED and breaker.rests_s == 0
    assert not breaker.failed() and breaker.failed()
    assert breaker.state is BreakerState.OPEN and not breaker.allows()


def test_after_its_rest_one_call_tries_and_success_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 4.9
    assert not breaker.allows() and round(breaker.rests_s, 1) == 0.1
    clock.now_s += 0.1
    assert breaker.allows() and breaker.state is BreakerState.HALF_OPEN
    assert not breaker.allows(), "one is enough to find out"
    assert breaker.succeeded() and breaker.state is BreakerState.CLOSED and breaker.allows()
    assert not breaker.succeeded(), "it was closed before"


def test_each_failed_try_doubles_the_rest_up_to_a_limit_and_success_forgets_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    for rest_s in (5.0, 10.0, 15.0, 15.0):
        assert breaker.rests_s == rest_s
        clock.now_s += rest_s
        assert breaker.allows() and breaker.failed()
    clock.now_s += 15.0
    assert breaker.allows() and breaker.succeeded()
    for _ in range(3):
        breaker.failed()
    assert breaker.rests_s == 5.0


def test_calls_that_began_before_it_opened_change_its_rest_only_if_they_succeed() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 1.0
    assert not breaker.failed() and breaker.rests_s == 4.0
    assert breaker.succeeded() and breaker.allows(), "the tier answers after all"


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(["call well", "call badly", "wait"]), max_size=60))
def test_no_run_of_calls_lets_more_than_one_through_in_a_rest(steps: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(failures=2, rest_s=3.0, longest_rest_s=6.0, clock=clock)
    failures_in_a_row, made_since_failure = 0, 0.0
    for step in steps:
        if step == "wait":
            clock.now_s += 1.0
            made_since_failure += 1.0
            continue
        allowed = breaker.allows()
        assert allowed == (failures_in_a_row < 2 or breaker.state is BreakerState.HALF_OPEN)
        if failures_in_a_row >= 2 and made_since_failure < 3.0:
            assert not allowed
        if allowed and step == "call well":
            breaker.succeeded()
            failures_in_a_row = 0
        elif allowed:
            breaker.failed()
            failures_in_a_row, made_since_failure = failures_in_a_row + 1, 0.0
    clock.now_s += 6.0
    assert breaker.allows(), "it never stays open for good"


def test_of_many_threads_one_tries() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 5.0
    together = threading.Barrier(8)
    allowed: list[bool] = []

    def ask() -> None:
        together.wait(20)
        allowed.append(breaker.allows())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(allowed) == [False] * 7 + [True]
