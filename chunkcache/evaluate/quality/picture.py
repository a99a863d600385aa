"""The frontier as a picture: drift, and F1 lost, against the honest cost of repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkcache.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.evaluate.quality.summary import ArmSummary, Summary


def draw_frontier(summary: Summary, path: Path, *, title: str) -> None:
    """Write a PNG with one line per policy, points joined by cost, 95 % intervals as bars.

    Raises:
        ConfigError: matplotlib is not installed (it is in the extra `eval`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "picture: matplotlib is not installed. Hint: pip install 'chunkcache[eval]'."
        ) from error
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for policy, arms in _by_policy(summary).items():
        cost = [arm.figures["repair_ratio"][0] for arm in arms]
        _line(left, policy, cost, [arm.figures["mean_kl"] for arm in arms])
        _line(right, policy, cost, [arm.f1_loss for arm in arms])
    left.set(xlabel="rows × layers recomputed ÷ reused", ylabel="mean KL to full recompute, nats")
    left.set_yscale("log")
    right.set(xlabel="rows × layers recomputed ÷ reused", ylabel="F1 lost against full recompute")
    right.axhline(0.0, color="0.6", linewidth=0.8)
    right.axhline(summary.full_f1[0] - summary.no_documents_f1[0], color="0.6", linestyle=":")
    right.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _by_policy(summary: Summary) -> dict[str, list[ArmSummary]]:
    grouped: dict[str, list[ArmSummary]] = {}
    for arm in summary.arms:
        grouped.setdefault(arm.name.partition("@")[0], []).append(arm)
    return {
        policy: sorted(arms, key=lambda arm: arm.figures["repair_ratio"][0])
        for policy, arms in grouped.items()
    }


def _line(axes: Any, label: str, cost: list[float], values: list[Any]) -> None:
    middle = [v[0] for v in values]
    below = [v[0] - v[1] for v in values]
    above = [v[2] - v[0] for v in values]
    axes.errorbar(cost, middle, yerr=[below, above], marker="o", markersize=4, capsize=2,
                  linewidth=1.2, elinewidth=0.6, label=label)  # fmt: skip
