"""Several rankings into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RRF_K = 60


def reciprocal_rank_fusion(
    rankings: Iterable[Iterable[int]], k: int = RRF_K, weights: Sequence[float] | None = None
) -> list[tuple[int, float]]:
    """Ids with their fused scores, best first: the sum of weight / (k + rank) over the rankings.

    Ranks start at 1, and only ranks count, so scores of different kinds need no common scale. Equal
    sums are ordered by id. Pure. Source: Cormack, Clarke and Buettcher, SIGIR 2009, with k = 60.

    Args:
        rankings: each best first, each id at most once.
        k: how much the first places are damped, at least 0.
        weights: one for each ranking, at least 0; 1 each if left out. What only rankings of weight
            0 have is left out.

    Raises:
        ValueError: `k` or a weight is negative, a ranking has an id twice, or there are not as many
            weights as rankings.
    """
    if k < 0:
        raise ValueError(f"k: got {k}, must be at least 0")
    rankings = list(rankings)
    if weights is None:
        weights = [1.0] * len(rankings)
    if any(weight < 0 for weight in weights):
        raise ValueError(f"weights: got {list(weights)}, must be at least 0")
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if not weight:
            continue
        seen: set[int] = set()
        for rank, item in enumerate(ranking, start=1):
            if item in seen:
                raise ValueError(f"rankings: got {item} more than once in one ranking")
            seen.add(item)
            scores[item] = scores.get(item, 0.0) + weight / (k + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
