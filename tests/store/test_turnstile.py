"""Many together, or one alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from chunkcache.store.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Callable


def test_two_threads_pass_together() -> None:
    turnstile = Turnstile()
    both = threading.Barrier(2, timeout=10)

    def enter() -> None:
        with turnstile.passing():
            both.wait()

    other = threading.Thread(target=enter)
    other.start()
    enter()
    other.join()
    assert not both.broken


def test_alone_waits_for_those_inside_and_keeps_newcomers_out(
    eventually: Callable[..., None],
) -> None:
    turnstile, order = Turnstile(), []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with turnstile.passing():
            inside.set()
            leave.wait(10)
            order.append("first leaves")

    def alone() -> None:
        with turnstile.alone():
            order.append("alone")

    def newcomer() -> None:
        with turnstile.passing():
            order.append("newcomer")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    inside.wait(10)
    threads.append(threading.Thread(target=alone))
    threads[1].start()
    eventually(lambda: turnstile._taken)
    threads.append(threading.Thread(target=newcomer))
    threads[2].start()
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first leaves", "alone", "newcomer"]


def test_an_error_inside_lets_the_next_one_in() -> None:
    turnstile = Turnstile()
    for passage in (turnstile.passing, turnstile.alone):
        try:
            with passage():
                raise KeyError
        except KeyError:
            with turnstile.alone():
                pass
    assert turnstile._inside == 0
