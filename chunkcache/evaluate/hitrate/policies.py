"""Policies by name: those the service can have, and two from the literature beside them."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from chunkcache.errors import InvalidRequest
from chunkcache.store.lru import LruPolicy
from chunkcache.store.policy import Policy, free_room
from chunkcache.store.popularity import Popularity
from chunkcache.store.windowed import WindowedFrequencyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from chunkcache.store.policy import Entry, Refusal, Room

    NewPolicies = Callable[[Sequence[int]], list[Policy]]

SHIPPED: Final = "windowed"
"""What the service's tiers have."""


class _Plain(Policy):
    """What policies without terms, clock and look-ahead answer."""

    def on_time(self, now_s: float) -> None:
        """See `Policy`."""

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """See `Policy`."""

    def on_wait(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        """See `Policy`."""
        self.on_delete(digest)
        self.on_put(to, entry)

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        """See `Policy`."""
        return self.victims(bytes_needed, spared)

    def why_not(self, digest: bytes, entry: Entry) -> Refusal:
        """See `Policy`."""
        raise AssertionError("it never says no, so nobody asks why")

    def room_for(self, tenant: str, free_bytes: int) -> Room:
        """See `Policy`. It knows no quotas."""
        return free_room(free_bytes)

    def may_pin(self, size_bytes: int, instead_of: Iterable[bytes] = ()) -> bool:
        """See `Policy`. It knows no pins."""
        return False

    def pins_beyond(self) -> list[bytes]:
        """See `Policy`. It knows no pins."""
        return []


class FifoPolicy(_Plain):
    """First in, first out."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[bytes, int] = OrderedDict()

    def on_use(self, *digests: bytes) -> None:
        """See `Policy`."""

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """See `Policy`."""
        self._sizes[digest] = entry.size_bytes

    def on_delete(self, digest: bytes) -> None:
        """See `Policy`."""
        self._sizes.pop(digest, None)

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """See `Policy`."""
        return _take(iter(self._sizes.items()), bytes_needed, spared)


class GdsfPolicy(_Plain):
    """Greedy-Dual-Size-Frequency (Cherkasova 1998): clock + uses while here ÷ bytes.

    The clock is the priority of who left last, so that what is not used falls behind.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._sizes: dict[bytes, int] = {}
        self._uses: dict[bytes, int] = {}
        self._places: dict[bytes, tuple[float, int, bytes]] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._pushed = 0

    def on_use(self, *digests: bytes) -> None:
        """See `Policy`."""
        for digest in digests:
            if digest in self._sizes:
                self._uses[digest] += 1
                self._push(digest)

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """See `Policy`."""
        self._sizes[digest] = max(entry.size_bytes, 1)
        self._uses[digest] = 1
        self._push(digest)

    def on_delete(self, digest: bytes) -> None:
        """See `Policy`. Who leaves sets the clock, unless by a wish of somebody's."""
        if self._sizes.pop(digest, None) is not None:
            self._clock = max(self._clock, self._places.pop(digest)[0])
            del self._uses[digest]

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """See `Policy`."""
        popped: list[tuple[float, int, bytes]] = []

        def worst_first() -> Iterator[tuple[bytes, int]]:
            while self._heap:
                place = heapq.heappop(self._heap)
                if self._places.get(place[2]) is place:
                    popped.append(place)
                    yield place[2], self._sizes[place[2]]

        chosen = _take(worst_first(), bytes_needed, spared)
        for place in popped:
            heapq.heappush(self._heap, place)
        return chosen

    def _push(self, digest: bytes) -> None:
        self._pushed += 1
        priority = self._clock + self._uses[digest] / self._sizes[digest]
        place = (priority, self._pushed, digest)
        self._places[digest] = place
        heapq.heappush(self._heap, place)
        if len(self._heap) > 2 * len(self._places) + 64:
            self._heap = list(self._places.values())
            heapq.heapify(self._heap)


def _take(
    worst_first: Iterator[tuple[bytes, int]], bytes_needed: int, spared: Container[bytes]
) -> list[bytes]:
    chosen: list[bytes] = []
    while bytes_needed > 0:
        found = next(worst_first, None)
        if found is None:
            break
        if found[0] not in spared:
            chosen.append(found[0])
            bytes_needed -= found[1]
    return chosen


def _sharing_uses(capacities: Sequence[int]) -> list[Policy]:
    """As `Runtime` and `open_store` have them: lower tiers know what is used above them."""
    popularity = Popularity()
    return [
        WindowedFrequencyPolicy(capacity, popularity=popularity, counts_uses=index == 0)
        for index, capacity in enumerate(capacities)
    ]


POLICIES: Final[dict[str, NewPolicies]] = {
    SHIPPED: _sharing_uses,
    "lru": lambda capacities: [LruPolicy() for _ in capacities],
    "fifo": lambda capacities: [FifoPolicy() for _ in capacities],
    "gdsf": lambda capacities: [GdsfPolicy() for _ in capacities],
}


def policy_named(name: str) -> NewPolicies:
    """What makes the policies of tiers of so many bytes, from fast to slow.

    Raises:
        InvalidRequest: there is no such policy.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise InvalidRequest.of(
            "policy", name, f"one of {', '.join(POLICIES)}", f"{SHIPPED} is the service's"
        ) from None
