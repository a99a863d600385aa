"""Records in the order in which they leave a tier: by a worth that only grows. Pure."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from chunkcache.store.victims import Held, Stage

    Place = tuple[float, bytes, Held]  # (worth, digest, record)


class EvictionQueue:
    """Worst first. A worth that has grown is noticed when its record gets to the head.

    So `worth` may be asked about any record in here at any time, and must never fall while the
    record is in here. Who is here is told by the stage of the record: it leaves by going on to a
    stage that is none of `stages`, and never comes back. `add`, `discard`, `head`, `pop`: O(log n)
    amortised over changes of worth.
    """

    __slots__ = ("_heap", "_stages", "_worth", "size")

    def __init__(self, worth: Callable[[Held], float], *stages: Stage | None) -> None:
        self._worth = worth
        self._stages: Container[Stage | None] = stages
        self._heap: list[Place] = []
        self.size = 0  # records in here; whoever reads it does not change it

    def add(self, held: Held) -> None:
        """A record came in."""
        self.size += 1
        heapq.heappush(self._heap, (self._worth(held), held.digest, held))

    def discard(self) -> None:
        """A record that was here has gone on to another stage."""
        self.size -= 1
        if len(self._heap) > 2 * self.size + 64:
            self._heap = [place for place in self._heap if place[2].stage in self._stages]
            heapq.heapify(self._heap)

    def head(self) -> Place | None:
        """The place of the worst record."""
        heap = self._heap
        while heap:
            place = heap[0]
            worst, digest, held = place
            if held.stage not in self._stages:
                heapq.heappop(heap)
            elif (worth := self._worth(held)) > worst:
                heapq.heapreplace(heap, (worth, digest, held))
            else:
                return place
        return None

    def pop(self) -> Place:
        """Take the head out; it must have been asked for just before. See `restore`."""
        self.size -= 1
        return heapq.heappop(self._heap)

    def restore(self, place: Place) -> None:
        """Put back what was popped, to where it was."""
        self.size += 1
        heapq.heappush(self._heap, place)
