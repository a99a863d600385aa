"""How much drift to expect from what repair leaves undone: a curve, fitted to measured questions.

The predictor is the *residual*: the share of the question's attention to reused rows that falls on
rows which were not recomputed. It is known before repair, for every number of rows at once, and
falls from 1 (nothing repaired) to 0 (everything). The curve over it is isotonic regression (pool
adjacent violators; Barlow et al. 1972): the closest curve in least squares that never falls.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class DriftCurve:
    """Expected drift (mean KL in nats) at knots of the residual; constant between two knots."""

    residuals: tuple[float, ...]  # increasing: where the level after it begins
    drifts: tuple[float, ...]  # never falling

    def __post_init__(self) -> None:
        rising = all(a <= b for a, b in zip(self.drifts, self.drifts[1:], strict=False))
        ordered = all(a < b for a, b in zip(self.residuals, self.residuals[1:], strict=False))
        numbers = all(math.isfinite(v) and v >= 0 for v in (*self.residuals, *self.drifts))
        if not self.residuals or len(self.residuals) != len(self.drifts):
            raise ValueError("a drift curve needs as many drifts as residuals, at least one")
        if not (rising and ordered and numbers):
            raise ValueError("a drift curve never falls, and its residuals increase")

    def drift_at(self, residual: float) -> float:
        """Expected drift when `residual` is left; 0 when nothing is."""
        if residual <= 0.0:
            return 0.0
        index = bisect.bisect_right(self.residuals, residual) - 1
        return self.drifts[max(0, index)]

    def residual_for(self, drift: float) -> float:
        """The largest residual whose expected drift is at most `drift`; 0 if there is none."""
        index = bisect.bisect_right(self.drifts, drift)
        if index == len(self.drifts):
            return 1.0
        # just below the knot where the curve steps over the target
        return 0.0 if index == 0 else math.nextafter(self.residuals[index], 0.0)


def fit_drift_curve(residuals: Sequence[float], drifts: Sequence[float]) -> DriftCurve:
    """The isotonic least-squares fit of drift to residual.

    Raises:
        ValueError: no points, or as many residuals as drifts are not given.

    >>> fit_drift_curve([0.1, 0.5, 0.6], [0.0, 0.3, 0.1]).drifts
    (0.0, 0.2)
    """
    points = sorted(zip(residuals, drifts, strict=True))
    if not points:
        raise ValueError("no points to fit a drift curve to")
    merged: dict[float, list[float]] = {}
    for residual, drift in points:
        merged.setdefault(residual, []).append(drift)
    # blocks of (first residual, sum of drifts, count); neighbours out of order are pooled
    blocks: list[tuple[float, float, int]] = []
    for residual, values in merged.items():
        blocks.append((residual, math.fsum(values), len(values)))
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            _, total, count = blocks.pop()
            start, before, many = blocks.pop()
            blocks.append((start, before + total, many + count))
    return DriftCurve(tuple(b[0] for b in blocks), tuple(_mean(b) for b in blocks))


def _mean(block: tuple[float, float, int]) -> float:
    return block[1] / block[2]
