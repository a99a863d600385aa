"""Many answers at once in one arm: the time of a step while all of them decode, and memory."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from arm_child import memory, release_free, reset_peak

if TYPE_CHECKING:
    from arm_child import OwnEngine

TRIES = 4  # an answer may end before all others have begun


class Window:
    """When each answer's pieces came, and whether enough came while all answers decoded.

    Thread-safe. Open from when the last answer began; closed once every answer has `wanted` pieces
    since then. An answer that begins again opens it anew.
    """

    def __init__(self, answers: int, wanted: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(answers)]
        self.opened_at: float | None = None
        self.closed_at: float | None = None
        self.half_way = threading.Event()
        self._since = [0] * answers
        self._wanted = wanted
        self._lock = threading.Lock()

    def note(self, answer: int) -> bool:
        """A piece of this answer came. Whether the window is closed."""
        now = time.perf_counter()
        with self._lock:
            if self.closed_at is not None:
                return True
            self.times[answer].append(now)
            if self.opened_at is not None:
                self._since[answer] += 1
            elif all(self.times):
                self.opened_at = now
            least = min(self._since)
            if least >= self._wanted // 2:
                self.half_way.set()
            if least >= self._wanted:
                self.closed_at = now
            return self.closed_at is not None

    def begin_again(self, answer: int) -> None:
        """This answer ended and is asked for once more."""
        with self._lock:
            if self.closed_at is None:
                self.times[answer] = []
                self.opened_at = None
                self._since = [0] * len(self._since)

    def close(self) -> None:
        """Nothing counts from here on; it may be too little."""
        with self._lock:
            self.closed_at = self.closed_at or time.perf_counter()
            self.half_way.set()

    def gaps_ms(self) -> list[list[float]]:
        """Per answer, the times between its pieces while all answers decoded."""
        if self.opened_at is None or self.closed_at is None:
            return []
        kept = [[t for t in times if self.opened_at <= t <= self.closed_at] for times in self.times]
        return [[(b - a) * 1e3 for a, b in pairwise(t)] for t in kept]


def run_together(arm: OwnEngine, told: dict[str, Any]) -> dict[str, Any]:
    """Every request in a thread of its own until the window closes; answers are cancelled then.

    Raises:
        Exception: the first that a request raised.
    """
    requests = told["requests"]
    window = Window(len(requests), told["pieces"])
    failures: list[Exception] = []

    def run(number: int) -> None:
        try:
            for _ in range(TRIES):
                with closing(arm.stream(requests[number])) as events:
                    for event in events:
                        if event.type == "delta" and window.note(number):
                            return
                window.begin_again(number)
        except Exception as error:
            failures.append(error)
        finally:
            window.close()

    release_free()
    reset_peak()
    before = memory()["rss_bytes"]
    began = time.perf_counter()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    window.half_way.wait()
    gauges = arm.gauges()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {
        "gaps_ms": window.gaps_ms(),
        "first_ms": [(t[0] - began) * 1e3 for t in window.times if t],
        "rss_before_bytes": before,
        "peak_bytes": memory()["peak_bytes"],
        "gauges": gauges,
    }
