"""When a remote tier is asked, and when it is left alone. Pure; the clock is an argument."""

from __future__ import annotations

import threading
import time
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class BreakerState(IntEnum):
    """As the gauge shows it."""

    CLOSED = 0  # calls go through
    HALF_OPEN = 1  # one call tries
    OPEN = 2  # none does


class Breaker:
    """Lets calls through until several in a row failed, then one at a time to try. Thread-safe.

    Every call that was allowed ends with `succeeded` or `failed`. Each failed try doubles the time
    to the next one.

    Args:
        failures: in a row, to open.
        rest_s: from opening to the first try.
        longest_rest_s: from one try to the next, at most.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        rest_s: float = 5.0,
        longest_rest_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._first_rest_s = rest_s
        self._longest_rest_s = longest_rest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._rest_s = rest_s
        self._until_s: float | None = None  # None: closed
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """Open also when the time for a try has come and nobody has come to try."""
        with self._lock:
            if self._until_s is None:
                return BreakerState.CLOSED
            return BreakerState.HALF_OPEN if self._trying else BreakerState.OPEN

    @property
    def rests_s(self) -> float:
        """Seconds until the next call may go through; 0 when one may now."""
        with self._lock:
            return 0.0 if self._until_s is None else max(0.0, self._until_s - self._clock())

    def allows(self) -> bool:
        """Whether a call may be made now; who is told so reports how it went."""
        with self._lock:
            if self._until_s is None:
                return True
            if self._trying or self._clock() < self._until_s:
                return False
            self._trying = True
            return True

    def succeeded(self) -> bool:
        """A call went well. True: that closed the breaker."""
        with self._lock:
            was_open = self._until_s is not None
            self._failures, self._rest_s = 0, self._first_rest_s
            self._until_s, self._trying = None, False
            return was_open

    def failed(self) -> bool:
        """A call failed. True: that opened the breaker, or kept it open after a try."""
        with self._lock:
            self._failures += 1
            tried = self._trying
            if self._until_s is not None and not tried:
                return False  # begun before it opened
            if not tried and self._failures < self._limit:
                return False
            if tried:
                self._rest_s = min(2 * self._rest_s, self._longest_rest_s)
            self._until_s, self._trying = self._clock() + self._rest_s, False
            return True
