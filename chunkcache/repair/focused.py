"""Cache-Craft's focused chunks (arXiv 2502.15734, §3): let go of chunks the question passes over.

The exact rule of the cut is not public. This one is ours, from what is: attention of the question
to chunks, added up layer by layer, tells the chunks it needs from the others after about a third to
half of the layers for most questions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.repair.base import RepairTask, Scoring, Step
from chunkcache.repair.cfo import FixOverhead
from chunkcache.repair.select import top_rows

if TYPE_CHECKING:
    from chunkcache.repair.base import ReusedChunk


class FocusedChunks(FixOverhead):
    """CFO's rows, of which those of chunks that the question does not attend to stop half-way.

    At a third, five twelfths and half of the layers: where the question's attention per token falls
    by `GAP` or more from one chunk to the next, the chunks below stop there. At the last of these
    at most half of the rows that began go on, and that is paid for in advance: so a third more rows
    begin than the budget could pay to the end.
    """

    name = "focused"
    watches = Scoring.QUESTION
    GAP = 2.0
    KEPT = 0.5

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """As CFO chooses, up to as many as may begin."""
        return self.rows_within(task, self._begin(task))

    def steps(self, task: RepairTask) -> tuple[Step, ...]:
        """The layers where chunks may be let go."""
        edges = _edges(task)
        if not edges or task.budget >= 1.0:
            return ()
        begin, end = self._begin(task), edges[-1]
        paid = task.max_rows * task.num_layers - begin * end
        last = min(begin, int(paid / (task.num_layers - end) + 1e-9))
        return tuple(Step(e, last if e == end else begin) for e in edges)

    def narrow(
        self, task: RepairTask, step: Step, rows: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """The rows of the chunks above the gap, those of the best chunks first."""
        running = [c for c in task.chunks if _has(c, rows)]
        attention = [chunk_attention(c, scores) for c in running]
        worth = np.zeros(len(scores))
        for index in above_gap(attention, self.GAP):
            chunk = running[index]
            worth[chunk.start : chunk.start + chunk.num_tokens] = 1.0 + attention[index]
        focused = rows[worth[rows] > 0.0]
        return top_rows(focused, worth[focused], step.max_rows)

    def _begin(self, task: RepairTask) -> int:
        """Rows that begin: so many that half of them can be paid for behind the last step."""
        edges = _edges(task)
        if not edges or task.budget >= 1.0:
            return task.max_rows
        layers = edges[-1] + self.KEPT * (task.num_layers - edges[-1])
        return min(task.reusable_rows, int(task.max_rows * task.num_layers / layers))


def chunk_attention(chunk: ReusedChunk, scores: np.ndarray) -> float:
    """Attention of the question per token of the chunk; scores that are not finite count as 0."""
    own = scores[chunk.start : chunk.start + chunk.num_tokens].astype(np.float64)
    return float(np.where(np.isfinite(own), own, 0.0).mean())


def above_gap(values: list[float], gap: float) -> list[int]:
    """Indices of the values above the widest relative gap, largest value first.

    All of them where no value is `gap` times the next one.

    >>> above_gap([1.0, 9.0, 8.0, 2.0], 2.0)
    [1, 2]
    """
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    ratios = [
        values[a] / values[b] if values[b] > 0.0 else np.inf if values[a] > 0.0 else 1.0
        for a, b in pairwise(order)
    ]
    if not ratios or max(ratios) < gap:
        return order
    return order[: int(np.argmax(ratios)) + 1]


def _edges(task: RepairTask) -> list[int]:
    twelfths = (task.num_layers * n // 12 for n in (4, 5, 6))
    return sorted({e for e in twelfths if e > 0})


def _has(chunk: ReusedChunk, rows: np.ndarray) -> bool:
    return bool(((rows >= chunk.start) & (rows < chunk.start + chunk.num_tokens)).any())
