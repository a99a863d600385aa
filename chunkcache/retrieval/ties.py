"""Hits of equal score: by document and place in it, so that every index of a corpus agrees.

Indexes know chunks by random numbers, which are others on another machine and after another ingest.
Equal is what differs by no more than rounding: the inner products of one vector and its copies do,
by where they stand in the index (the edges of a matrix product are summed up in another order).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Hits = list[tuple[int, float]]
    """Entries with their scores, best first."""
    Place = tuple[str, int, int]
    """A document's id, which of its chunks, and which of the collections that are searched."""

ROUNDING: Final = 1e-6  # of cosines; of larger scores, such as BM25's, times the score


class StableOrder:
    """Sorts hits. Places are read once for each entry, and only of those that tie.

    Cost: for each `best` a sort, and one call of `read` if anything ties that it has not read: of
    two rankings that are fused, each place in the one ties with that in the other.
    """

    def __init__(self, read: Callable[[Sequence[int]], Mapping[int, Place]]) -> None:
        self._read = read
        self._places: dict[int, Place] = {}

    def best(self, hits: Iterable[tuple[int, float]], depth: int, slack: float = ROUNDING) -> Hits:
        """The first `depth` of them; scores that are equal are given as the same number.

        Args:
            slack: scores that are apart by no more are equal, see `ROUNDING`.
        """
        ordered = sorted(hits, key=lambda hit: -hit[1])
        ends = [place for place in range(1, len(ordered)) if _differ(ordered, place, slack)]
        runs = [
            ordered[start:end]
            for start, end in zip([0, *ends], [*ends, len(ordered)], strict=True)
            if start < depth
        ]
        self._learn([entry for run in runs if len(run) > 1 for entry, _ in run])
        found = [(entry, run[0][1]) for run in runs for entry in self._sorted(run)]
        return found[:depth]

    def _learn(self, entries: Iterable[int]) -> None:
        unknown = [entry for entry in entries if entry not in self._places]
        if unknown:
            self._places.update(self._read(unknown))

    def _sorted(self, run: Hits) -> list[int]:
        held = [entry for entry, _ in run if entry in self._places]
        gone = [entry for entry, _ in run if entry not in self._places]  # deleted meanwhile, or one
        return sorted(held, key=self._places.__getitem__) + gone


def to_the_end_of_a_tie(hits: Hits, depth: int, *, is_all: bool) -> Hits | None:
    """The first `depth` hits, and those behind that tie with the last; None: more may tie."""
    for place in range(depth, len(hits)):
        if _differ(hits, place, ROUNDING):
            return hits[:place]
    return hits if is_all else None


def _differ(hits: Hits, place: int, slack: float) -> bool:
    """Whether the hit at a place is worse than the one before."""
    before, score = hits[place - 1][1], hits[place][1]
    return before - score > slack * max(1.0, abs(before))
