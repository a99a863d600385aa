"""Policies that recompute the rows with the largest measured scores: question, deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chunkcache.repair.base import RepairPolicy, RowSelection, Scoring
from chunkcache.repair.fixed import FirstK
from chunkcache.repair.select import reusable_positions, rows_until, smoothed, top_rows

if TYPE_CHECKING:
    from chunkcache.repair.base import RepairTask


class _TopScores(RepairPolicy):
    ROWS_BEFORE, ROWS_AFTER = 0, 0  # whose scores count for a row beside its own

    def selection(self, task: RepairTask) -> RowSelection | None:
        """As many of the largest as can be paid for; a residual is found on the host."""
        if task.max_residual is not None:
            return None
        return RowSelection(task.max_rows, self.ROWS_BEFORE, self.ROWS_AFTER)

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The best-scored rows of all chunks together: `task.max_rows`, or as many as it takes.

        Where the task names a `max_residual`, the fewest rows that leave no more than that.
        """
        positions = reusable_positions(task)
        if task.needs_no_scores:
            return positions[: task.max_rows]  # none, or every one
        if scores is None:
            raise ValueError(f"policy {self.name!r} needs scores")
        scores = self.weigh(task, scores)
        count = task.max_rows
        if task.max_residual is not None:
            count = min(count, rows_until(scores[positions], task.max_residual))
            if task.cost(count) >= task.reusable_rows:
                count = task.reusable_rows  # everything costs no more, and is exact
        return top_rows(positions, scores[positions], count)


class QuestionRows(_TopScores):
    """Rows the question looks at (ProphetKV, arXiv 2602.02579): one set for all layers.

    A row the question never reads can be as wrong as it likes; a row it reads should be right. What
    it looks at are the words that lead to an answer as often as the answer, which is read only once
    the answer begins: so each row takes the scores of its neighbours as well as its own, of more
    rows before it than after.

    Where looking would take too much of the budget, as it does in short prompts under small
    budgets, the first rows of all chunks are repaired instead, which costs no look.
    """

    name = "question"
    needs = Scoring.QUESTION
    # measured, all of them: docs/log.md
    probe_keeps = 0.25
    max_scoring_share = 0.5
    ROWS_BEFORE, ROWS_AFTER = 6, 2

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The rows with the largest scores, or first rows where scoring is dear."""
        if task.scoring_is_dear:
            longest = max(c.first_row + c.num_tokens for c in task.chunks)
            return FirstK(longest).choose(task, None)
        return super().choose(task, scores)

    def weigh(self, task: RepairTask, scores: np.ndarray) -> np.ndarray:
        """Scores averaged over neighbours of the same chunk, float32."""
        near = smoothed(task, scores, before=self.ROWS_BEFORE, after=self.ROWS_AFTER)
        return near.astype(np.float32)


class DeviatingRows(_TopScores):
    """Rows whose K and V changed most at the second layer (CacheBlend, arXiv 2405.16444, §4.3)."""

    name = "deviation"
    needs = Scoring.DEVIATION
