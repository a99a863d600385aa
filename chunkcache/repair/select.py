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


def rows_until(scores: np.ndarray, max_residual: float) -> int:
    """How many of the largest scores must be taken so that at most `max_residual` of all is left.

    Scores that are not positive and finite are no mass at all. Without any mass: 0.

    >>> rows_until(np.array([1.0, 5.0, 2.0, 2.0]), 0.3)
    2
    """
    mass = np.sort(np.where(np.isfinite(scores) & (scores > 0), scores, 0.0).astype(np.float64))
    total = mass.sum()
    if total <= 0.0:
        return 0
    left = 1.0 - np.cumsum(mass[::-1]) / total
    if max_residual >= 1.0:
        return 0
    # the last sum may miss 1 by rounding: all rows always suffice
    return min(len(mass), int(np.searchsorted(-left, -max_residual - 1e-12)) + 1)


def smoothed(task: RepairTask, scores: np.ndarray, *, before: int, after: int) -> np.ndarray:
    """Scores averaged over a row, up to `before` rows before it and up to `after` rows after it.

    Never across a chunk's edge. Scores that are not finite count as 0, so that one of them does
    not spread.
    """
    result = np.array(scores, dtype=np.float64)
    for chunk in task.chunks:
        rows = slice(chunk.start, chunk.start + chunk.num_tokens)
        own = np.where(np.isfinite(result[rows]), result[rows], 0.0)
        count, sums = len(own), np.zeros(len(own))
        # one term after the other, as engine/ranked.py adds them: equal windows have equal sums
        for step in range(max(-before, 1 - count), min(after, count - 1) + 1):
            inside = slice(max(0, -step), count - max(0, step))
            sums[inside] += own[inside.start + step : inside.stop + step]
        index = np.arange(count)
        near = np.minimum(index, before) + 1 + np.minimum(count - 1 - index, after)
        result[rows] = sums / near
    return result


def residual(task: RepairTask, scores: np.ndarray, chosen: np.ndarray) -> float:
    """Share of the scores of all reusable rows that is left on rows not chosen; 0 without mass."""
    positions = reusable_positions(task)
    mass = np.where(np.isfinite(scores) & (scores > 0), scores, 0.0).astype(np.float64)
    total = mass[positions].sum()
    return float(max(0.0, 1.0 - mass[chosen].sum() / total)) if total > 0.0 else 0.0
