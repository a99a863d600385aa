"""Pictures: what repair costs against what is lost, and drift as predicted against as measured."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from chunkcache.durable import whole_file
from chunkcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chunkcache.evaluate.quality.summary import ArmSummary, Bin, Interval, Summary


def look_for_matplotlib() -> None:
    """Before hours of evaluation, not after them.

    Raises:
        ConfigError: matplotlib is not installed (it is in the extra `eval`).
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "picture: matplotlib is not installed. Hint: pip install 'chunkcache[eval]'."
        )


def draw_frontier(summary: Summary, path: Path, *, title: str) -> None:
    """Write a PNG with one line per policy, points joined by cost, 95 % intervals as bars.

    Raises:
        ConfigError: matplotlib is not installed (it is in the extra `eval`).
    """
    figure = _figure(11.0)
    left, right = figure.subplots(1, 2)
    for policy, arms in _by_policy(summary).items():
        cost = [arm.figures["repair_ratio"][0] for arm in arms]
        _line(left, policy, cost, [arm.figures["mean_kl"] for arm in arms])
        lost = [arm.f1_loss for arm in arms if arm.f1_loss is not None]
        if lost:
            _line(right, policy, cost, lost)
    left.set(xlabel="rows × layers recomputed ÷ reused", ylabel="mean KL to full recompute, nats")
    left.set_yscale("log")
    right.set(xlabel="rows × layers recomputed ÷ reused", ylabel="F1 lost against full recompute")
    right.axhline(0.0, color="0.6", linewidth=0.8)
    (right if summary.graded else left).legend(fontsize=8)
    _save(figure, path, title)


def draw_reliability(bins: Sequence[Bin], path: Path, *, title: str) -> None:
    """Write a PNG: measured against predicted drift with 95 % intervals, and the diagonal.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(5.5)
    axes = figure.subplots(1, 1)
    predicted = [b.predicted for b in bins]
    _line(axes, "answers, in bins", predicted, [b.measured for b in bins])
    top = max([*predicted, *(b.measured[2] for b in bins)], default=1.0)
    axes.plot([0, top], [0, top], color="0.6", linewidth=0.8, label="as predicted")
    axes.set(xlabel="predicted mean KL, nats", ylabel="measured mean KL, nats")
    axes.legend(fontsize=8)
    _save(figure, path, title)


def _figure(width: float) -> Any:
    look_for_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=130)


def _by_policy(summary: Summary) -> dict[str, list[ArmSummary]]:
    """Arms of one line each: `question@0.1 head` belongs to `question head`."""
    grouped: dict[str, list[ArmSummary]] = {}
    for arm in summary.arms:
        first, _, beside = arm.name.partition(" ")
        policy = f"{first.partition('@')[0]} {beside}".strip()
        grouped.setdefault(policy, []).append(arm)
    return {
        policy: sorted(arms, key=lambda arm: arm.figures["repair_ratio"][0])
        for policy, arms in grouped.items()
    }


def _line(axes: Any, label: str, across: list[float], values: list[Interval]) -> None:
    middle = [v[0] for v in values]
    below = [max(0.0, v[0] - v[1]) for v in values]
    above = [max(0.0, v[2] - v[0]) for v in values]
    style = "--" if " " in label and "," not in label else "-"
    axes.errorbar(across, middle, yerr=[below, above], marker="o", markersize=4, capsize=2,
                  linewidth=1.2, elinewidth=0.6, linestyle=style, label=label)  # fmt: skip
