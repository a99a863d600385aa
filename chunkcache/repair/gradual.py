"""CacheBlend's gradual filtering (arXiv 2405.16444, §4.3): the deeper, the fewer rows.

Rows that change most in the second layer are not always those that change most further up, so more
of them begin than can be paid for to the end, and those that turn out to change little are let go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.repair.base import DEVIATION_LAYERS, RepairPolicy, RowSelection, Scoring, Step
from chunkcache.repair.select import reusable_positions, top_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from chunkcache.repair.base import RepairTask


class FallingRows(RepairPolicy):
    """All rows through two layers, then fewer and fewer of them, by how far K and V deviate.

    The paper filters in every layer and gives no schedule. Neighbouring layers rank rows much alike
    (its insight 2), so here they are compared again only twice, after a quarter and after half of
    the layers, and `KEPT` of them go on each time.
    """

    name = "gradual"
    needs = Scoring.DEVIATION
    watches = Scoring.DEVIATION
    KEPT = 0.7

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The rows that begin: more than `task.max_rows`, which is how many could all end."""
        positions = reusable_positions(task)
        if task.needs_no_scores:
            return positions[: task.max_rows]  # none, or every one
        if scores is None:
            raise ValueError(f"policy {self.name!r} needs scores")
        return top_rows(positions, scores[positions], self._counts(task)[0])

    def selection(self, task: RepairTask) -> RowSelection | None:
        """The rows that begin; which go on is found on the host."""
        return RowSelection(self._counts(task)[0])

    def steps(self, task: RepairTask) -> tuple[Step, ...]:
        """After a quarter and after half of the layers, where the model has as many."""
        if task.needs_no_scores:
            return ()
        counts = self._counts(task)
        return tuple(Step(e, n) for e, n in zip(_edges(task)[1:], counts[1:], strict=True))

    def _counts(self, task: RepairTask) -> list[int]:
        edges = _edges(task)
        if edges[0] >= task.num_layers:
            return [task.max_rows]
        lengths = [b - a for a, b in zip(edges, [*edges[1:], task.num_layers], strict=True)]
        paid = (task.budget * task.reusable_rows - task.scoring_rows) * task.num_layers
        return falling_counts(paid, lengths, self.KEPT, task.reusable_rows)


def _edges(task: RepairTask) -> list[int]:
    """Layers from which a set of rows runs, the first of all behind the scored ones."""
    deeper = {task.num_layers // 4, task.num_layers // 2}
    return [DEVIATION_LAYERS, *sorted(e for e in deeper if e > DEVIATION_LAYERS)]


def falling_counts(paid: float, lengths: Sequence[int], kept: float, limit: int) -> list[int]:
    """How many rows run through each stretch of layers: each time `kept` of those before.

    All together cost at most `paid` rows × layers, and no stretch has more than `limit` rows, the
    first ones first where there is enough for all.

    >>> falling_counts(100.0, [4, 12], 0.5, 50)
    [10, 5]
    >>> falling_counts(100.0, [4, 12], 0.5, 8)
    [8, 5]
    """
    shares = [kept**i for i in range(len(lengths))]
    for full in range(len(lengths)):
        left = paid - limit * sum(lengths[:full])
        first = left / sum(s * n for s, n in zip(shares[full:], lengths[full:], strict=True))
        if first * shares[full] <= limit:  # the 1e-9 undoes binary fractions
            rest = [int(first * share + 1e-9) for share in shares[full:]]
            return [limit] * full + rest
    return [limit] * len(lengths)
