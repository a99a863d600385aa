"""Choosing rows from scores: the shared last step of every scored policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from chunkcache.repair.base import RepairTask


def reusable_positions(task: RepairTask) -> np.ndarray:
    """All positions of the task's chunks, increasing."""
    runs = [np.arange(c.start, c.start + c.num_tokens, dtype=np.int64) for c in task.chunks]
    return np.concatenate(runs) if runs else np.empty(0, dtype=np.int64)


def top_rows(positions: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` positions with the largest scores, increasing; ties go to the earlier position.

    NaN scores (a broken model) count as the lowest, so they never crowd out real ones.
    """
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    order = np.lexsort((positions, -ranked))
    return np.sort(positions[order[:count]])
