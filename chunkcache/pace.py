"""How long a queue takes, from how long those before took."""

from __future__ import annotations

import math
import threading
from typing import Final

_WEIGHT: Final = 0.2
"""Of the newest measurement: the last five or so make the estimate."""
_LONGEST_S: Final = 600


class Pace:
    """A moving mean of service times, and the wait that follows from it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._service_s: float | None = None

    def observe(self, service_s: float) -> None:
        """Somebody was served in so many seconds, waiting not counted."""
        with self._lock:
            mean_s = service_s if self._service_s is None else self._service_s
            self._service_s = mean_s + _WEIGHT * (service_s - mean_s)

    def wait_s(self, ahead: int, side_by_side: int) -> int:
        """Whole seconds, 1 to 600, until `ahead` are served, `side_by_side` of them at a time.

        1 while nobody has been served yet.

        >>> pace = Pace()
        >>> pace.observe(3.0)
        >>> pace.wait_s(ahead=10, side_by_side=4)
        8
        """
        with self._lock:
            service_s = self._service_s or 0.0
        return min(_LONGEST_S, max(1, math.ceil(service_s * ahead / side_by_side)))
