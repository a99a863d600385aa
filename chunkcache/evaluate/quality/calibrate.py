"""Fitting the drift curve to questions, and saying how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.quality.arms import Arm
from chunkcache.repair.drift_curve import fit_drift_curve
from chunkcache.service.calibration import CALIBRATED_POLICY, Calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.repair.drift_curve import DriftCurve

CALIBRATION_BUDGETS = (0.0, 0.05, 0.1, 0.15, 0.3, 0.5)
_FEWEST = 8


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted and measured drift of one budget, means over questions the curve has not seen."""

    arm: str
    residual: float
    predicted: float
    measured: float


def calibration_arms() -> list[Arm]:
    """What is evaluated to calibrate: the probing policy at budgets from nothing to half."""
    return [Arm(CALIBRATED_POLICY, budget) for budget in CALIBRATION_BUDGETS]


def calibrate(lines: Sequence[dict[str, Any]]) -> tuple[Calibration, list[Reliability]]:
    """Fit to all questions, and say how well halves of them predict each other.

    The predictions that reliability compares are of a curve fitted to the other half (two-fold
    cross-validation); the curve that is kept is fitted to everything.

    Args:
        lines: of `evaluate`, with the arms of `calibration_arms`.

    Raises:
        InvalidRequest: too few questions reused anything.
    """
    usable = [line for line in lines if any(a["reusable_rows"] for a in line["arms"].values())]
    if len(usable) < _FEWEST:
        raise InvalidRequest.of(
            "questions", len(usable), f"at least {_FEWEST} whose answers reuse passages",
            "give more questions, or --top-k above 1",
        )  # fmt: skip
    names = [arm.name for arm in calibration_arms()]
    halves = usable[0::2], usable[1::2]
    curves = [_fit(half, names) for half in halves]
    unseen = [(curves[1 - i], line) for i in (0, 1) for line in halves[i]]
    reliability = [_reliability(unseen, name) for name in names]
    count = len(reliability)
    return (
        Calibration(
            _fit(usable, names),
            questions=len(usable),
            held_out_predicted=sum(r.predicted for r in reliability) / count,
            held_out_measured=sum(r.measured for r in reliability) / count,
        ),
        reliability,
    )


def _fit(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> DriftCurve:
    points = [_point(line["arms"][name]) for line in lines for name in names]
    return fit_drift_curve(*zip(*points, strict=True))


def _point(arm: dict[str, Any]) -> tuple[float, float]:
    return float(arm["residual"]), float(arm["mean_kl"])


def _reliability(unseen: Sequence[tuple[DriftCurve, dict[str, Any]]], name: str) -> Reliability:
    points = [(curve, *_point(line["arms"][name])) for curve, line in unseen]
    count = len(points)
    return Reliability(
        name,
        residual=sum(r for _, r, _ in points) / count,
        predicted=sum(curve.drift_at(r) for curve, r, _ in points) / count,
        measured=sum(d for _, _, d in points) / count,
    )
