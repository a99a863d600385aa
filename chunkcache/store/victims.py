"""Choosing who leaves: records ranked by stage, taken from the worst up, and put back. Pure."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention
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


Stages = tuple[Ranking, Ranking, Ranking]  # one for each stage
_WORST_FIRST = tuple(Stage)


class Held:
    """A record in the tier and its stage (none: pinned), in the rankings of one or two pools."""

    __slots__ = ("entry", "log2_density", "rankings", "stage")

    def __init__(self, entry: Entry, rankings: tuple[Stages, ...]) -> None:
        self.entry = entry
        self.rankings = rankings
        self.stage: Stage | None = None
        # of what it saves by bytes, priority included
        density = max(entry.saved, 1e-12) / max(entry.size_bytes, 1)
        self.log2_density = math.log2(density) + entry.terms.priority


class Pools:
    """Rankings by stage, warmed records and others apart, since not all may push out the former."""

    def __init__(
        self,
        expiry: Callable[[bytes], float],
        worth: Callable[[bytes], float],
        used: Callable[[bytes], float],
    ) -> None:
        self.others = (Ranking(expiry), Ranking(worth), Ranking(used))
        self.warmed = (Ranking(expiry), Ranking(worth), Ranking(used))

    def of(self, entry: Entry) -> Stages:
        """The rankings a record belongs to, by stage."""
        return self.warmed if entry.terms.retention is Retention.WARMED else self.others

    def count(self, stage: Stage) -> int:
        """Records at a stage."""
        return len(self.others[stage]) + len(self.warmed[stage])

    def head(self, stage: Stage) -> bytes:
        """The worst record of a stage, of which there must be one."""
        heads = [ranking.head() for ranking in (self.others[stage], self.warmed[stage]) if ranking]
        return min(place for place in heads if place is not None)[1]


class Victims:
    """Victims, gathered from one set of pools after another; `restore` puts everything back.

    Args:
        held: the records of the tier.
        spared: they are not taken.
        waits: who waits for a record, as places in the queue, first one first. Such records are
            taken only when nothing else is left, the one wanted last first.
        warmed_to_spare: bytes of warmed records that may be taken, expired ones apart.
    """

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
        self._at: Ranking | None = None  # whose head was looked at last, and is still in it

    def restore(self) -> None:
        """Leave the pools as they were."""
        for ranking, place in self._popped:
            ranking.restore(place)

    def take(self, pools: Pools, bytes_needed: float) -> None:
        """Choose from `pools` until they free `bytes_needed`, as far as they go."""
        later: list[bytes] = []
        for stage in _WORST_FIRST:
            others, warmed = pools.others[stage], pools.warmed[stage]
            while self.freed_bytes < bytes_needed and (others or warmed):
                digest = self._next(others, warmed, stage)
                if digest is None:
                    break
                if digest in self._waits:
                    later.append(digest)
                elif digest not in self._spared:
                    self._choose(digest)
        if later:
            later.sort(key=lambda digest: -self._waits[digest][0])
            for digest in later:
                if self.freed_bytes < bytes_needed:
                    self._choose(digest)

    def _next(self, others: Ranking, warmed: Ranking, stage: Stage) -> bytes | None:
        """The next worst record of a stage that may go. The last one stays in its ranking."""
        if self._at is not None:
            self._popped.append((self._at, self._at.pop()))
        ranking, place = others, others.head()
        if warmed and (head := warmed.head()) is not None and (place is None or head < place):
            size_bytes = self._held[head[1]].entry.size_bytes
            if stage is Stage.EXPIRED or size_bytes <= self._warmed_to_spare:
                ranking, place = warmed, head
        self._at = ranking if place is not None else None
        return place[1] if place is not None else None

    def _choose(self, digest: bytes) -> None:
        held = self._held[digest]
        if digest in self._is_chosen or digest in self._spared:
            return
        if held.entry.terms.retention is Retention.WARMED and held.stage is not Stage.EXPIRED:
            if held.entry.size_bytes > self._warmed_to_spare:
                return
            self._warmed_to_spare -= held.entry.size_bytes
        self._is_chosen.add(digest)
        self.digests.append(digest)
        self.freed_bytes += held.entry.size_bytes
