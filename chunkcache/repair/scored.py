"""Policies that recompute the rows with the largest measured scores: question, deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chunkcache.repair.base import Scoring
from chunkcache.repair.select import reusable_positions, top_rows

if TYPE_CHECKING:
    from chunkcache.repair.base import RepairTask


class _TopScores:
    name: str
    needs: Scoring

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The `task.max_rows` best-scored rows of all chunks together."""
        if task.max_rows == 0:
            return np.empty(0, dtype=np.int64)
        if scores is None:
            raise ValueError(f"policy {self.name!r} needs scores")
        positions = reusable_positions(task)
        return top_rows(positions, scores[positions], task.max_rows)


class QuestionRows(_TopScores):
    """Rows the question looks at (ProphetKV, arXiv 2602.02579): one set for all layers.

    A row the question never reads can be as wrong as it likes; a row it reads should be right.
    """

    name = "question"
    needs = Scoring.QUESTION


class DeviatingRows(_TopScores):
    """Rows whose K and V changed most at the second layer (CacheBlend, arXiv 2405.16444, §4.3)."""

    name = "deviation"
    needs = Scoring.DEVIATION
