"""Rankings of one collection or several → one ranking, as if all were one collection."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from chunkcache_indexes.hybrid import reciprocal_rank_fusion
from chunkcache_indexes.lexical import joint_scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

    from chunkcache.ranking import Ranking
    from chunkcache.retrieval.ties import StableOrder
    from chunkcache_indexes.lexical import WordCounts

    Mode = Literal["hybrid", "vector", "lexical"]

Hits = list[tuple[int, float]]
"""Entries with their scores, best first."""


@dataclass(frozen=True, slots=True)
class Rankings:
    """What one collection found; a ranking that the mode has no use for is empty."""

    by_vector: Hits
    by_words: Hits
    counts: WordCounts | None = None
    """Of the entries in `by_words`; None where the collection is searched alone."""


def mode_of(mode: Mode, ranking: Ranking | None) -> Mode:
    """How a search ranks: as it wishes, else as the settings say."""
    if ranking is None:
        return mode
    if ranking.least_score is not None:
        return "vector"
    return mode if ranking.weights is None else "hybrid"


def fused(
    found: Sequence[Rankings], depth: int, mode: Mode, ranking: Ranking | None, order: StableOrder
) -> Hits:
    """At most `depth` entries of all collections.

    Scores are cosines (vector), BM25 over all of them (lexical), or reciprocal ranks (hybrid).
    """
    by_vector = order.best(chain.from_iterable(one.by_vector for one in found), depth)
    if mode == "vector":
        least = ranking.least_score if ranking else None
        return [hit for hit in by_vector if least is None or hit[1] >= least]
    by_words = order.best(_by_words(found), depth)
    if mode == "lexical":
        return by_words
    rankings = [[entry for entry, _ in hits] for hits in (by_vector, by_words)]
    weights = ranking.weights if ranking else None
    return order.best(reciprocal_rank_fusion(rankings, weights=weights), depth, slack=0.0)


def _by_words(found: Sequence[Rankings]) -> Iterable[tuple[int, float]]:
    counted = [one.counts for one in found if one.counts is not None]
    if len(counted) < len(found):
        return chain.from_iterable(one.by_words for one in found)
    entries = [entry for one in found for entry, _ in one.by_words]
    scores = [float(score) for part in joint_scores(counted) for score in part]
    return zip(entries, scores, strict=True)
