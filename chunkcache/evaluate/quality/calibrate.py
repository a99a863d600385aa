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
CALIBRATION_ALPHAS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
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


def check_enough(questions: int) -> None:
    """Whether so many that reuse passages are enough to fit a curve to; for all, before asking.

    Raises:
        InvalidRequest: they are not.
    """
    if questions < _FEWEST:
        raise InvalidRequest.of(
            "questions", questions, f"at least {_FEWEST} whose answers reuse passages",
            "give more questions, or --top-k above 1",
        )  # fmt: skip


def calibrate(lines: Sequence[dict[str, Any]]) -> tuple[Calibration, list[Reliability]]:
    """Fit to all questions, and say how well halves of them predict each other.

    The predictions that reliability compares are of a curve fitted to the other half (two-fold
    cross-validation); the curve that is kept is fitted to everything.

    Args:
        lines: of `evaluate`, with the arms of `calibration_arms`.

    Raises:
        InvalidRequest: too few questions reused anything.
    """
    usable = _repairable(lines)
    check_enough(len(usable))
    names = [arm.name for arm in calibration_arms()]
    halves = usable[0::2], usable[1::2]
    curves = [_fit(half, names) for half in halves]
    unseen = [(curves[1 - i], line) for i in (0, 1) for line in halves[i]]
    reliability = [one for name in names if (one := _reliability(unseen, name))]
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


@dataclass(frozen=True, slots=True)
class AlphaStep:
    """What one α of Cache-Craft's fix overhead costs and leaves, means over questions."""

    alpha: float
    cost: float  # share of the reused rows that was recomputed
    measured: float  # mean KL
    fitted: float  # the closest to it that never rises with α


def alpha_arms() -> list[Arm]:
    """What is evaluated to calibrate α: CFO at values of it, without a ceiling."""
    return [Arm("cfo", 1.0, alpha=alpha) for alpha in CALIBRATION_ALPHAS]


def calibrate_alpha(
    lines: Sequence[dict[str, Any]], max_drift: float
) -> tuple[float | None, list[AlphaStep]]:
    """The least α whose mean drift is at most `max_drift`, None if there is none, and all steps.

    After Cache-Craft (arXiv 2502.15734), which takes the α of least recomputation that keeps F1
    above a target on a sample; drift is the target here, because it needs no gold answers and far
    fewer questions. A larger α never means more drift, so the means are fitted to fall. Questions
    that leave nothing to repair have no drift at any α and are not counted.

    Args:
        lines: of `evaluate`, with the arms of `alpha_arms`.
        max_drift: mean KL in nats.

    Raises:
        InvalidRequest: no question left anything to repair.
    """
    usable = _repairable(lines)
    if not usable:
        raise InvalidRequest.of(
            "questions", 0, "at least 1 whose answer reuses passages",
            "give more questions, or --top-k above 1",
        )  # fmt: skip
    steps = []
    for arm in alpha_arms():
        found = [line["arms"][arm.name] for line in usable]
        cost = sum(one["repair_ratio"] for one in found) / len(found)
        drift = sum(one["mean_kl"] for one in found) / len(found)
        steps.append((arm.alpha or 0.0, cost, drift))
    curve = fit_drift_curve([1.0 - alpha for alpha, _, _ in steps], [d for _, _, d in steps])
    fitted = [AlphaStep(*step, fitted=curve.drift_at(1.0 - step[0])) for step in steps[:-1]]
    fitted.append(AlphaStep(*steps[-1], fitted=curve.drifts[0]))  # nothing is left at α = 1
    good = [step.alpha for step in fitted if step.fitted <= max_drift]
    return (min(good) if good else None), fitted


def _repairable(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that left something to repair: the others are exact, whatever is asked for."""
    return [line for line in lines if any(a["reusable_rows"] for a in line["arms"].values())]


def _fit(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> DriftCurve:
    points = [p for line in lines for name in names if (p := _point(line["arms"][name]))]
    return fit_drift_curve(*zip(*points, strict=True))


def _point(arm: dict[str, Any]) -> tuple[float, float] | None:
    """Residual and drift; None where rows were repaired without asking the question."""
    if arm["residual"] is None:
        return None
    return float(arm["residual"]), float(arm["mean_kl"])


def _reliability(
    unseen: Sequence[tuple[DriftCurve, dict[str, Any]]], name: str
) -> Reliability | None:
    points = [(c, *p) for c, line in unseen if (p := _point(line["arms"][name]))]
    count = len(points)
    if count == 0:
        return None
    return Reliability(
        name,
        residual=sum(r for _, r, _ in points) / count,
        predicted=sum(curve.drift_at(r) for curve, r, _ in points) / count,
        measured=sum(d for _, _, d in points) / count,
    )
