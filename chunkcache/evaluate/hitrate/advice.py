"""What to buy: the least memory and disk that serve a share of the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chunkcache.evaluate.hitrate.amounts import shown_bytes
from chunkcache.evaluate.hitrate.replay import replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.evaluate.hitrate.curve import Workload
    from chunkcache.evaluate.hitrate.replay import Replay

_HALVINGS: Final = 8  # of the logarithm between two sizes: to some hundredths of a size
_NEAR_TO_ALL_HITS: Final = 0.995
_NEAR_TO_ALL_TIME: Final = 0.9


@dataclass(frozen=True, slots=True)
class Advice:
    """Sizes, and what they come to."""

    wanted: float
    target: float  # `wanted`, or as near as this traffic can come
    memory_bytes: int
    disk_bytes: int
    replay: Replay

    def sentence(self) -> str:
        """For people."""
        found = self.replay
        disk = f" and {shown_bytes(self.disk_bytes)} of disk" if self.disk_bytes else ""
        need = f"you need {shown_bytes(self.memory_bytes)} of memory{disk}"
        gain = f"which saves {found.time_saved:.0%} of the time to compute passages"
        if self.target < self.wanted:
            return (
                f"No size gives {self.wanted:.0%} hits, because too few of these passages come "
                f"again: for {found.hit_rate:.1%}, near to the most there is, {need}, {gain}."
            )
        return f"For {self.wanted:.0%} hits {need}, {gain} ({found.hit_rate:.1%} hits)."


def advise(
    workload: Workload,
    wanted: float = 0.9,
    *,
    policy: str,
    with_disk: bool = True,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Advice:
    """What is needed for a share of `wanted` hits in tokens.

    With a disk: the least disk that gives them, and the least memory above it that saves nine
    tenths of the time that memory without end would save. Without, or where loads from the disk
    take longer than computing: the least memory that gives them. Memory holds the largest prompt.
    """
    facts = workload.facts
    target = min(wanted, _NEAR_TO_ALL_HITS * facts.highest_token_hit_rate)
    search = _Search(workload, policy, on_progress)

    def hits_enough(found: Replay, _: Replay) -> bool:
        return found.hit_rate >= target

    def saves_enough(found: Replay, best: Replay) -> bool:
        saved = found.time_saved >= _NEAR_TO_ALL_TIME * best.time_saved
        return saved and found.hit_rate >= target

    disk = None
    if with_disk:
        most = max(facts.disk_footprint_bytes, facts.largest_prompt_bytes)
        disk = search.least(lambda size: (0, size), most, hits_enough)
    memory = search.least(
        lambda size: (size, disk or 0), facts.footprint_bytes,
        hits_enough if disk is None else saves_enough,
    ) or facts.footprint_bytes  # fmt: skip
    (found,) = search.replays([(memory, disk or 0)])
    return Advice(wanted, target, memory, disk or 0, found)


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for sizes by bisection: a replay takes longer than reading the trace once more."""

    workload: Workload
    policy: str
    on_progress: Callable[[int], None]

    def replays(self, tiers: Sequence[tuple[int, int]]) -> list[Replay]:
        """Of memory and disk of so many bytes each."""
        settings = [self.workload.replaying(self.policy, *sizes) for sizes in tiers]
        return replay(self.workload.trace, self.workload.sizes, settings, self.on_progress)

    def least(
        self,
        of: Callable[[int], tuple[int, int]],
        most: int,
        suffices: Callable[[Replay, Replay], bool],
    ) -> int | None:
        """The least size, of one prompt at least, that suffices; None: not even `most` does.

        Args:
            of: memory and disk, from the size.
            suffices: given what a size came to, and what `most` did.
        """
        low, high = self.workload.facts.largest_prompt_bytes, most
        best, least = self.replays([of(most), of(low)])
        if not suffices(best, best):
            return None
        if suffices(least, best):
            return low
        for _ in range(_HALVINGS):
            middle = int(math.sqrt(low * high))
            (found,) = self.replays([of(middle)])
            if suffices(found, best):
                high = middle
            else:
                low = middle
        return high
