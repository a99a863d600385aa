"""Several rankings into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

RRF_K = 60


def reciprocal_rank_fusion(
    rankings: Iterable[Iterable[int]], k: int = RRF_K
) -> list[tuple[int, float]]:
    """Ids with their fused scores, best first: the sum of 1 / (k + rank) over the rankings.

    Ranks start at 1, and only ranks count, so scores of different kinds need no common scale. Equal
    sums are ordered by id. Pure. Source: Cormack, Clarke and Buettcher, SIGIR 2009, with k = 60.

    Args:
        rankings: each best first, each id at most once.
        k: how much the first places are damped, at least 0.

    Raises:
        ValueError: `k` is negative, or a ranking has an id twice.
    """
    if k < 0:
        raise ValueError(f"k: got {k}, must be at least 0")
    scores: dict[int, float] = {}
    for ranking in rankings:
        seen: set[int] = set()
        for rank, item in enumerate(ranking, start=1):
            if item in seen:
                raise ValueError(f"rankings: got {item} more than once in one ranking")
            seen.add(item)
            scores[item] = scores.get(item, 0.0) + 1.0 / (k + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
