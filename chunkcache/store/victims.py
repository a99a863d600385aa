"""Choosing who leaves: records ranked by stage, taken from the worst up, and put back. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from chunkcache.store.ranking import Ranking

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from chunkcache.store.policy import Entry
    from chunkcache.store.ranking import Place


class Stage(IntEnum):
    """Where a record stands; those of a lower stage leave first."""

    EXPIRED = 0
    MAIN = 1
    WINDOW = 2


_MAIN: Final = Stage.MAIN  # looked up in the enumeration once: these run at every record
_WINDOW: Final = Stage.WINDOW


class Held:
    """A record in the tier and its stage (none: pinned), in one or two pools."""

    __slots__ = ("entry", "is_warmed", "log2_density", "pools", "stage", "used_at")

    def __init__(
        self, entry: Entry, pools: tuple[Pools, ...], used_at: int, *, is_warmed: bool
    ) -> None:
        self.entry = entry
        self.pools = pools
        self.is_warmed = is_warmed
        self.stage: Stage | None = None
        self.used_at = used_at  # when it was used last, for as long as it is in the window
        # of what it saves by bytes, priority included
        size_bytes, saved, terms = entry
        density = max(saved, 1e-12) / max(size_bytes, 1)
        self.log2_density = math.log2(density) + terms.priority


Window = OrderedDict[bytes, Held]  # least recently used first


class Pools:
    """Records by stage: the window by last use, the others ranked.

    Warmed ones stand apart, second in each pair, since not everything may push them out.
    """

    __slots__ = ("expired", "main", "window")

    def __init__(self, expiry: Callable[[bytes], float], worth: Callable[[bytes], float]) -> None:
        self.expired = (Ranking(expiry), Ranking(expiry))
        self.main = (Ranking(worth), Ranking(worth))
        self.window: tuple[Window, Window] = (OrderedDict(), OrderedDict())

    def add(self, digest: bytes, held: Held) -> None:
        """A record comes to its stage, used last where that is the window."""
        if held.stage is _MAIN:
            self.main[held.is_warmed].add(digest)
        elif held.stage is _WINDOW:
            self.window[held.is_warmed][digest] = held
        else:
            self.expired[held.is_warmed].add(digest)

    def use(self, digest: bytes, held: Held) -> None:
        """A record of the window is used."""
        self.window[held.is_warmed].move_to_end(digest)

    def leave_window(self, digest: bytes, held: Held) -> None:
        """A record of the window, which is of the main part now, moves there."""
        del self.window[held.is_warmed][digest]
        self.main[held.is_warmed].add(digest)

    def oldest(self) -> tuple[bytes, Held]:
        """The record of the window that was used longest ago; there must be one."""
        others, warmed = self.window
        if not warmed:
            return next(iter(others.items()))
        heads = [next(iter(part.items())) for part in self.window if part]
        return min(heads, key=lambda head: head[1].used_at)

    def remove(self, digest: bytes, held: Held) -> None:
        """A record leaves its stage."""
        if held.stage is _MAIN:
            self.main[held.is_warmed].discard(digest)
        elif held.stage is _WINDOW:
            del self.window[held.is_warmed][digest]
        else:
            self.expired[held.is_warmed].discard(digest)


class Victims:
    """Victims, gathered from one set of pools after another; `restore` puts everything back.

    Args:
        held: the records of the tier.
        spared: they are not taken.
        waits: who waits for a record, as places in the queue, first one first. Such records are
            taken only when nothing else is left, the one wanted last first.
        warmed_to_spare: bytes of warmed records that may be taken, expired ones apart.
    """

    __slots__ = (
        "_held", "_is_chosen", "_later", "_popped", "_spared", "_waits", "_warmed_to_spare",
        "digests", "freed_bytes",
    )  # fmt: skip

    def __init__(
        self,
        held: Mapping[bytes, Held],
        spared: Container[bytes],
        waits: Mapping[bytes, Sequence[int]],
        warmed_to_spare: float,
    ) -> None:
        self.digests: list[bytes] = []
        self.freed_bytes = 0
        self._held = held
        self._spared = spared
        self._waits = waits
        self._warmed_to_spare = warmed_to_spare
        self._is_chosen: set[bytes] = set()
        self._popped: list[tuple[Ranking, Place]] = []
        self._later: list[bytes] = []

    def restore(self) -> None:
        """Leave the pools as they were."""
        for ranking, place in self._popped:
            ranking.restore(place)

    def take(self, pools: Pools, bytes_needed: float) -> None:
        """Choose from `pools` until they free `bytes_needed`, as far as they go."""
        others, warmed = pools.expired
        if others.places or warmed.places:
            self._take_ranked(others, warmed, bytes_needed, is_kept=False)
        others, warmed = pools.main
        if others.places or warmed.places:
            self._take_ranked(others, warmed, bytes_needed, is_kept=True)
        if self.freed_bytes < bytes_needed:
            self._take_from_window(pools.window, bytes_needed)
        if self._later:
            later, self._later = self._later, []
            later.sort(key=lambda digest: -self._waits[digest][0])
            for digest in later:
                if self.freed_bytes < bytes_needed:
                    self._choose(digest)

    def _take_ranked(
        self, others: Ranking, warmed: Ranking, bytes_needed: float, *, is_kept: bool
    ) -> None:
        """From two rankings as if they were one. `is_kept`: not all warmed ones may go."""
        while self.freed_bytes < bytes_needed:
            ranking, place = others, others.head()
            if warmed.places and (head := warmed.head()) and (place is None or head < place):
                size_bytes = self._held[head[1]].entry.size_bytes
                if not is_kept or size_bytes <= self._warmed_to_spare:
                    ranking, place = warmed, head
            if place is None:
                return
            self._consider(place[1])
            if self.freed_bytes < bytes_needed:  # else it stays where it is: no need to put it back
                self._popped.append((ranking, ranking.pop()))

    def _take_from_window(self, window: tuple[Window, Window], bytes_needed: float) -> None:
        others, warmed = (iter(part.items()) for part in window)
        other, warm = next(others, None), next(warmed, None)
        while self.freed_bytes < bytes_needed:
            if warm is not None and warm[1].entry.size_bytes > self._warmed_to_spare:
                warm = None  # nor may any behind it go
            if warm is not None and (other is None or warm[1].used_at < other[1].used_at):
                self._consider(warm[0])
                warm = next(warmed, None)
            elif other is not None:
                self._consider(other[0])
                other = next(others, None)
            else:
                return

    def _consider(self, digest: bytes) -> None:
        if digest in self._waits:
            self._later.append(digest)
        else:
            self._choose(digest)

    def _choose(self, digest: bytes) -> None:
        if digest in self._is_chosen or digest in self._spared:
            return
        held = self._held[digest]
        size_bytes = held.entry.size_bytes
        if held.is_warmed and held.stage is not Stage.EXPIRED:
            if size_bytes > self._warmed_to_spare:
                return
            self._warmed_to_spare -= size_bytes
        self._is_chosen.add(digest)
        self.digests.append(digest)
        self.freed_bytes += size_bytes
