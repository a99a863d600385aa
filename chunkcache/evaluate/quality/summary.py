"""From lines to a table: means with bootstrap intervals, paired where two arms are compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESAMPLES = 2000
_FIELDS = (
    "f1", "em", "rouge_l", "first_kl", "mean_kl", "agreement", "changed", "unanswered",
    "repair_ratio", "ttft_ratio",
)  # fmt: skip
_GRADED_FIELDS = ("f1", "em")

Interval = tuple[float, float, float]  # mean, and the bounds of its 95 % interval


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """Means over questions, each with its 95 % interval.

    Without gold answers `figures` has neither `f1` nor `em`, and no F1 is lost or kept.
    """

    name: str
    figures: dict[str, Interval]
    # full minus arm, per question: paired, hence narrower than either
    f1_loss: Interval | None


@dataclass(frozen=True, slots=True)
class Summary:
    """All arms of an evaluation."""

    questions: int
    graded: int  # those with gold answers: F1 and exact match are over these alone
    full_f1: Interval | None
    no_documents_f1: Interval | None
    arms: tuple[ArmSummary, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of which about the same drift was expected."""

    predicted: float  # mean, nats
    measured: Interval
    answers: int


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean and percentile interval (Efron 1979) over 2,000 resamples.

    Raises:
        ValueError: there are no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    draw = np.random.default_rng(seed).integers(0, data.size, (_RESAMPLES, data.size))
    low, high = np.percentile(data[draw].mean(axis=1), [2.5, 97.5])
    return float(data.mean()), float(low), float(high)


def summarise(lines: Sequence[dict[str, Any]]) -> Summary:
    """Summarise an evaluation's lines; only arms that every line has are summarised."""
    names = [n for n in lines[0]["arms"] if all(n in line["arms"] for line in lines)]
    graded = [line for line in lines if line["gold"]]
    arms = []
    for name in names:
        figures = {}
        for field in _FIELDS:
            of = graded if field in _GRADED_FIELDS else lines
            if of:
                figures[field] = bootstrap([float(line["arms"][name][field]) for line in of])
        loss = [line["full"]["f1"] - line["arms"][name]["f1"] for line in graded]
        arms.append(ArmSummary(name, figures, bootstrap(loss) if loss else None))
    return Summary(
        questions=len(lines),
        graded=len(graded),
        full_f1=bootstrap([line["full"]["f1"] for line in graded]) if graded else None,
        no_documents_f1=(
            bootstrap([line["no_documents"]["f1"] for line in graded]) if graded else None
        ),
        arms=tuple(arms),
    )


def reliability_bins(lines: Sequence[dict[str, Any]], count: int = 6) -> list[Bin]:
    """Measured beside predicted drift, over all answers that came with a prediction.

    Answers are put into bins of equal number by what was predicted; equal predictions stay
    together. Fewer bins where there are few different predictions. Answers that were exact are left
    out: nothing was predicted of them.
    """
    points = sorted(
        (float(arm["predicted_drift"]), float(arm["mean_kl"]))
        for line in lines
        for arm in line["arms"].values()
        if arm["predicted_drift"] is not None and arm["residual"] != 0.0
    )
    groups: list[list[tuple[float, float]]] = []
    for point in points:
        full = groups and len(groups[-1]) * count >= len(points)
        if not groups or (full and groups[-1][-1][0] != point[0]):
            groups.append([])
        groups[-1].append(point)
    return [
        Bin(float(np.mean([p for p, _ in group])), bootstrap([m for _, m in group]), len(group))
        for group in groups
    ]


def paired_difference(
    lines: Sequence[dict[str, Any]], field: str, first: str, second: str
) -> Interval:
    """Mean of `first − second` per question, with its interval: is one arm better than another?"""
    return bootstrap(
        [float(line["arms"][first][field]) - float(line["arms"][second][field]) for line in lines]
    )
