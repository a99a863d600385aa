"""Policies that need no scores: none, first_k, all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chunkcache.repair.base import RepairPolicy, Scoring
from chunkcache.repair.select import reusable_positions

if TYPE_CHECKING:
    from chunkcache.repair.base import RepairTask


class NoRepair(RepairPolicy):
    """Place and reuse: right positions, no new context. The fastest and least exact."""

    name = "none"
    needs = Scoring.NONE

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """No rows."""
        return np.empty(0, dtype=np.int64)


class RepairAll(RepairPolicy):
    """Every row: the twin of full prefill, whatever the budget says."""

    name = "all"
    needs = Scoring.NONE

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """All rows."""
        return reusable_positions(task)


class FirstK(RepairPolicy):
    """The first tokens of every chunk (EPIC / LegoLink, arXiv 2410.15332, §4).

    A chunk encoded at the start of a prompt makes attention sinks of its first tokens; recomputed
    in place they stop being sinks. At most `k` per chunk, fewer when the budget is smaller; rows
    are dealt round by round so that no chunk is favoured. First tokens that the exact-prefix cache
    holds are no sinks, and no later ones are taken in their place.
    """

    name = "first_k"
    needs = Scoring.NONE

    def __init__(self, k: int) -> None:
        self._k = k

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The first row of every chunk, then the second, … until k or the budget is reached."""
        chosen: list[int] = []
        for offset in range(self._k):
            if len(chosen) >= task.max_rows:
                break
            for chunk in task.chunks:
                row = offset - chunk.first_row
                if 0 <= row < chunk.num_tokens and len(chosen) < task.max_rows:
                    chosen.append(chunk.start + row)
        return np.sort(np.array(chosen, dtype=np.int64))
