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
    `places` has the one place of each record that counts; whoever reads it does not change it.
    """

    __slots__ = ("_heap", "_worth", "places")

    def __init__(self, worth: Callable[[bytes], float]) -> None:
        self._worth = worth
        self._heap: list[Place] = []
        self.places: dict[bytes, Place] = {}

    def add(self, digest: bytes) -> None:
        """A record comes in."""
        self.places[digest] = place = (self._worth(digest), digest)
        heapq.heappush(self._heap, place)

    def discard(self, digest: bytes) -> None:
        """A record leaves, if it is here."""
        places = self.places
        places.pop(digest, None)
        if len(self._heap) > 2 * len(places) + 64:
            self._heap = list(places.values())
            heapq.heapify(self._heap)

    def head(self) -> Place | None:
        """The place of the worst record."""
        heap, places = self._heap, self.places
        while heap:
            place = heap[0]
            digest = place[1]
            if places.get(digest) is not place:
                heapq.heappop(heap)
            elif (worth := self._worth(digest)) > place[0]:
                places[digest] = place = (worth, digest)
                heapq.heapreplace(heap, place)
            else:
                return place
        return None

    def pop(self) -> Place:
        """Take the head out; it must have been asked for just before. See `restore`."""
        place = heapq.heappop(self._heap)
        del self.places[place[1]]
        return place

    def restore(self, place: Place) -> None:
        """Put back what was popped, to where it was."""
        self.places[place[1]] = place
        heapq.heappush(self._heap, place)
