"""Records in order of a worth that only grows. Pure."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

Place = tuple[float, bytes]  # (worth, digest)


class Ranking:
    """Worst first. A worth that has grown is noticed when its record gets to the head.

    So `worth` may be asked about any record in here at any time, and must never fall while the
    record is in here. `add`, `discard`, `head`, `pop`: O(log n) amortised over changes of worth.
    """

    def __init__(self, worth: Callable[[bytes], float]) -> None:
        self._worth = worth
        self._heap: list[Place] = []
        self._live: dict[bytes, Place] = {}  # the one place of each record that counts

    def __len__(self) -> int:
        return len(self._live)

    def add(self, digest: bytes) -> None:
        """A record comes in."""
        self._push((self._worth(digest), digest))

    def discard(self, digest: bytes) -> None:
        """A record leaves, if it is here."""
        self._live.pop(digest, None)
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = list(self._live.values())
            heapq.heapify(self._heap)

    def head(self) -> Place | None:
        """The place of the worst record."""
        while self._heap:
            place = self._heap[0]
            if self._live.get(place[1]) is not place:
                heapq.heappop(self._heap)
            elif (worth := self._worth(place[1])) > place[0]:
                heapq.heappop(self._heap)
                self._push((worth, place[1]))
            else:
                return place
        return None

    def pop(self) -> Place:
        """Take the head out; it must have been asked for just before. See `restore`."""
        place = heapq.heappop(self._heap)
        del self._live[place[1]]
        return place

    def restore(self, place: Place) -> None:
        """Put back what was popped, to where it was."""
        self._push(place)

    def _push(self, place: Place) -> None:
        self._live[place[1]] = place
        heapq.heappush(self._heap, place)
