"""Choosing who leaves: records ranked by stage, taken from the worst up, and put back. Pure."""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum
from math import log2
from typing import TYPE_CHECKING, Final

from chunkcache.store.eviction_queue import EvictionQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from chunkcache.store.eviction_queue import Place
    from chunkcache.store.policy import Entry
    from chunkcache.store.popularity import Uses


class Stage(IntEnum):
    """Where a record stands; those of a lower stage leave first."""

    GONE = -1  # it is in the tier no more
    EXPIRED = 0
    MAIN = 1
    WINDOW = 2


_EXPIRED: Final = Stage.EXPIRED  # looked up in the enumeration once: these run at every record
_MAIN: Final = Stage.MAIN
_WINDOW: Final = Stage.WINDOW


class Held:
    """A record in the tier and its stage (none: pinned), in one or two pools."""

    __slots__ = (
        "digest", "entry", "is_warmed", "log2_density", "pools", "stage", "used_at", "uses"
    )  # fmt: skip

    def __init__(
        self, entry: Entry, uses: Uses, pools: tuple[Pools, ...], used_at: int, *, is_warmed: bool
    ) -> None:
        self.digest = uses.digest
        self.entry = entry
        self.uses = uses
        self.pools = pools
        self.is_warmed = is_warmed
        self.stage: Stage | None = None
        self.used_at = used_at  # when it was used last, for as long as it is in the window
        # of what it saves by bytes, priority included
        size_bytes, saved, terms = entry
        density = (saved if saved > 1e-12 else 1e-12) / (size_bytes if size_bytes > 1 else 1)
        self.log2_density = log2(density) + terms.priority

    def __lt__(self, other: Held) -> bool:
        """For queues, where a record that left may stand beside the one that came for it."""
        return self.used_at < other.used_at


Window = OrderedDict[bytes, Held]  # least recently used first


class Pools:
    """Records by stage: the window by last use, the others ranked.

    Warmed ones stand apart, second in each pair, since not everything may push them out.
    """

    __slots__ = ("expired", "main", "window")

    def __init__(self, worth: Callable[[Held], float]) -> None:
        self.expired = (EvictionQueue(expiry, _EXPIRED), EvictionQueue(expiry, _EXPIRED))
        self.main = (EvictionQueue(worth, _MAIN), EvictionQueue(worth, _MAIN))
        self.window: tuple[Window, Window] = (OrderedDict(), OrderedDict())

    def add(self, held: Held) -> None:
        """A record came to its stage, used last where that is the window."""
        if held.stage is _WINDOW:
            self.window[held.is_warmed][held.digest] = held
        elif held.stage is _MAIN:
            self.main[held.is_warmed].add(held)
        else:
            self.expired[held.is_warmed].add(held)

    def use(self, held: Held) -> None:
        """A record of the window is used."""
        self.window[held.is_warmed].move_to_end(held.digest)

    def leave_window(self, held: Held) -> None:
        """A record that was in the window is of the main part now."""
        del self.window[held.is_warmed][held.digest]
        self.main[held.is_warmed].add(held)

    def oldest(self) -> Held:
        """The record of the window that was used longest ago; there must be one."""
        others, warmed = self.window
        if not warmed:
            return next(iter(others.values()))
        heads = [next(iter(part.values())) for part in self.window if part]
        return min(heads, key=lambda held: held.used_at)

    def remove(self, held: Held, stage: Stage) -> None:
        """A record has left `stage`."""
        if stage is _MAIN:
            self.main[held.is_warmed].discard()
        elif stage is _WINDOW:
            del self.window[held.is_warmed][held.digest]
        else:
            self.expired[held.is_warmed].discard()


def expiry(held: Held) -> float:
    """When a record expires: what those that have are ranked by."""
    return held.entry.terms.expires_s


class Victims:
    """Victims, gathered from one set of pools after another; `restore` puts everything back.

    Args:
        spared: they are not taken.
        waits: who waits for a record, as places in the queue, first one first. Such records are
            taken only when nothing else is left, the one wanted last first.
        warmed_to_spare: bytes of warmed records that may be taken, expired ones apart.
        after: of those waited for, only those whose place is behind this one are taken.
    """

    __slots__ = (
        "_after", "_chosen_before", "_later", "_popped", "_spared", "_waits", "_warmed_to_spare",
        "digests", "freed_bytes",
    )  # fmt: skip

    def __init__(
        self,
        spared: Container[bytes],
        waits: Mapping[bytes, Sequence[int]],
        warmed_to_spare: float,
        after: int = -1,
    ) -> None:
        self.digests: list[bytes] = []
        self.freed_bytes = 0
        self._spared = spared
        self._waits = waits
        self._after = after
        self._warmed_to_spare = warmed_to_spare
        self._chosen_before: Container[bytes] = ()  # from other pools
        self._popped: list[tuple[EvictionQueue, Place]] = []
        self._later: list[Held] = []

    def restore(self) -> None:
        """Leave the pools as they were."""
        for queue, place in self._popped:
            queue.restore(place)

    def take(self, pools: Pools, bytes_needed: float) -> None:
        """Choose from `pools` until they free `bytes_needed`, as far as they go."""
        if self.digests:
            self._chosen_before = set(self.digests)
        others, warmed = pools.expired
        if others.size or warmed.size:
            self._take_ranked(others, warmed, bytes_needed, is_kept=False)
        others, warmed = pools.main
        if others.size or warmed.size:
            self._take_ranked(others, warmed, bytes_needed, is_kept=True)
        if self.freed_bytes < bytes_needed:
            self._take_from_window(pools.window, bytes_needed)
        if self._later:
            later, self._later = self._later, []
            later.sort(key=lambda held: -self._waits[held.digest][0])
            for held in later:
                if self.freed_bytes < bytes_needed and self._waits[held.digest][0] > self._after:
                    self._choose(held)

    def _take_ranked(
        self, others: EvictionQueue, warmed: EvictionQueue, bytes_needed: float, *, is_kept: bool
    ) -> None:
        """From two queues as if they were one. `is_kept`: not all warmed ones may go."""
        while self.freed_bytes < bytes_needed:
            queue, place = others, others.head()
            if warmed.size and (head := warmed.head()) and (place is None or head < place):
                size_bytes = head[2].entry.size_bytes
                if not is_kept or size_bytes <= self._warmed_to_spare:
                    queue, place = warmed, head
            if place is None:
                return
            self._consider(place[2])
            if self.freed_bytes < bytes_needed:  # else it stays where it is: no need to put it back
                self._popped.append((queue, queue.pop()))

    def _take_from_window(self, window: tuple[Window, Window], bytes_needed: float) -> None:
        others, warmed = (iter(part.values()) for part in window)
        other, warm = next(others, None), next(warmed, None)
        while self.freed_bytes < bytes_needed:
            if warm is not None and warm.entry.size_bytes > self._warmed_to_spare:
                warm = None  # nor may any behind it go
            if warm is not None and (other is None or warm.used_at < other.used_at):
                self._consider(warm)
                warm = next(warmed, None)
            elif other is not None:
                self._consider(other)
                other = next(others, None)
            else:
                return

    def _consider(self, held: Held) -> None:
        if self._waits and held.digest in self._waits:
            self._later.append(held)
        else:
            self._choose(held)

    def _choose(self, held: Held) -> None:
        digest = held.digest
        if digest in self._chosen_before or digest in self._spared:
            return
        size_bytes = held.entry.size_bytes
        if held.is_warmed and held.stage is not _EXPIRED:
            if size_bytes > self._warmed_to_spare:
                return
            self._warmed_to_spare -= size_bytes
        self.digests.append(digest)
        self.freed_bytes += size_bytes
