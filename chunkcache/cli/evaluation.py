"""`eval` and `calibrate`: what reuse costs in answers, on your own questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from chunkcache.cli.context import shared
from chunkcache.cli.documents import Collection, Tenant
from chunkcache.cli.outputs import PNG, claim_picture
from chunkcache.cli.screen import console
from chunkcache.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.cli.context import Shared
    from chunkcache.evaluate.quality import AlphaStep, Evaluation, Question, Reliability, Summary
    from chunkcache.evaluate.quality.summary import Interval
    from chunkcache.service import ChunkCache


Questions = Annotated[
    Path,
    typer.Argument(
        help='JSON lines: {"question", "answers"?, "contexts"?: [{"title", "text"}]}.',
        exists=True, dir_okay=False,
    ),
]  # fmt: skip
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Questions taken.")]
Skip = Annotated[int, typer.Option("--skip", min=0, help="Questions left out first.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Passages.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1)]
Suffix = Annotated[
    str, typer.Option("--suffix", help="Follows every question, e.g. to ask for brevity.")
]
Out = Annotated[Path, typer.Option("--out", help="One JSON line per question; can be resumed.")]

_LOSS = "f1_loss"  # paired with full recompute, hence not among an arm's figures


def evaluate(
    context: typer.Context,
    questions: Questions,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="policy (at every budget), policy@budget, cfo:alpha or drift@target. Repeatable.",
        ),
    ] = None,
    budgets: Annotated[
        list[float] | None, typer.Option("--budget", min=0, max=1, help="Repeatable.")
    ] = None,
    out: Out = Path("evaluation.jsonl"),
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Write the frontier as PNG.")
    ] = None,
    limit: Limit = None,
    skip: Skip = 0,
    top_k: TopK = None,
    max_tokens: MaxTokens = 24,
    suffix: Suffix = "",
    tenant: Tenant = "public",
    collection: Collection = "default",
) -> None:
    """Answer every question in full and from the cache; report drift, F1 and cost per policy."""
    from chunkcache.evaluate import quality
    from chunkcache.evaluate.quality.picture import draw_frontier, look_for_matplotlib

    if picture is not None:
        look_for_matplotlib()
        claim_picture("--picture", picture, PNG)
    arms = quality.parse_arms(policies or ["none", "question", "all"], budgets or [0.05, 0.15, 0.3])
    evaluation = quality.Evaluation(
        arms=tuple(arms), max_tokens=max_tokens, suffix=suffix, top_k=top_k,
        collection=collection, tenant=tenant,
    )  # fmt: skip
    asked = quality.read_questions(questions, limit=limit, skip=skip)
    with shared(context).open_to_read() as cache:
        lines = _evaluate(shared(context), cache, asked, evaluation, out)
        name = cache.model_id
    summary = quality.summarise(lines)
    show_summary(summary)
    if picture is not None:
        draw_frontier(summary, picture, title=f"{questions.name}, {len(lines)} questions, {name}")
    typer.echo(json.dumps({"file": str(questions), "model": name, **summary.as_dict()}))


def calibrate(
    context: typer.Context,
    questions: Questions,
    out: Out = Path("calibration.jsonl"),
    limit: Limit = None,
    skip: Skip = 0,
    top_k: TopK = None,
    max_tokens: MaxTokens = 24,
    suffix: Suffix = "",
    cfo_drift: Annotated[
        float | None,
        typer.Option(
            "--cfo-drift",
            min=0,
            help="Also find Cache-Craft's α: the least whose mean drift is at most this.",
        ),
    ] = None,
    tenant: Tenant = "public",
    collection: Collection = "default",
) -> None:
    """Learn from questions of yours how much drift to expect; then `--drift` can be asked for."""
    from chunkcache.evaluate import quality
    from chunkcache.service.calibration import store_calibration

    arms = quality.calibration_arms() + (quality.alpha_arms() if cfo_drift is not None else [])
    evaluation = quality.Evaluation(
        arms=tuple(arms), max_tokens=max_tokens, suffix=suffix, top_k=top_k,
        collection=collection, tenant=tenant,
    )  # fmt: skip
    asked = quality.read_questions(questions, limit=limit, skip=skip)
    quality.check_enough(len(asked))
    with shared(context).open() as cache:
        # what is measured must not hang on an earlier calibration
        known, cache.runtime.calibration = cache.runtime.calibration, None
        lines = _evaluate(shared(context), cache, asked, evaluation, out)
        calibration, reliability = quality.calibrate(lines)
        alpha, steps = known.cfo_alpha if known else None, None
        if cfo_drift is not None:
            alpha, steps = quality.calibrate_alpha(lines, cfo_drift)
        calibration = replace(calibration, cfo_alpha=alpha)
        path = store_calibration(cache.settings, cache.runtime.model.fingerprint, calibration)
    show_reliability(reliability, calibration.questions)
    if steps is not None and cfo_drift is not None:
        show_alphas(steps, alpha, cfo_drift)
    console().print(f"kept in {path}")


def _evaluate(
    common: Shared, cache: ChunkCache, questions: Sequence[Question], evaluation: Evaluation,
    out: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    from chunkcache.evaluate import quality

    _check_answerable(cache, questions, evaluation)
    with common.progress("questions") as progress:
        step = progress.step("eval", len(questions))
        return quality.evaluate(
            cache, questions, evaluation, out,
            on_progress=lambda done, _, eta_s: step(done, note=f"{eta_s / 60:.0f} min left"),
        )  # fmt: skip


def _check_answerable(
    cache: ChunkCache, questions: Sequence[Question], evaluation: Evaluation
) -> None:
    """Raises NotFound where questions want passages and there are none: all would seem exact."""
    bare = sum(question.contexts is None for question in questions)
    where = {"tenant": evaluation.tenant, "collection": evaluation.collection}
    if bare and evaluation.top_k != 0 and not cache.documents(**where):
        raise NotFound(
            f"There are no documents in {evaluation.collection!r}, and {bare} of {len(questions)} "
            "questions bring no contexts. Hint: chunkcache ingest, or --top-k 0"
        )


def show_reliability(reliability: Sequence[Reliability], fitted: int) -> None:
    """Predicted beside measured drift, on the questions the curve has not seen."""
    from chunkcache.evaluate import quality

    out = console()
    out.print(
        f"fitted to {fitted} questions; predicted here from the other half of them (KL, nats):"
    )
    table = Table("policy", "attention left", "predicted", "measured", box=None)
    for row in reliability:
        figures = (row.residual, row.predicted, row.measured)
        table.add_row(row.arm, *(f"{figure:.4f}" for figure in figures))
    out.print(table)
    shown = {row.arm for row in reliability}
    unasked = [arm.name for arm in quality.calibration_arms() if arm.name not in shown]
    if unasked:
        out.print(
            f"nothing to fit at {', '.join(unasked)}: in prompts as short as these the probe is "
            "too dear for such budgets, and first rows are repaired without asking the question"
        )


def show_alphas(steps: Sequence[AlphaStep], alpha: float | None, max_drift: float) -> None:
    """What each α costs and leaves, and the one that was taken."""
    out = console()
    table = Table("α of cfo", "rows recomputed", "drift", "fitted", box=None)
    for step in steps:
        table.add_row(
            f"{step.alpha:g}", f"{step.cost:.3f}", f"{step.measured:.4f}", f"{step.fitted:.4f}"
        )
    out.print(table)
    if alpha is None:
        out.print(f"no α keeps drift at {max_drift:g} or less; policy cfo takes its default")
    else:
        cost = next(step.cost for step in steps if step.alpha == alpha)
        out.print(
            f"α = {alpha:g} is the least that keeps drift at {max_drift:g} or less; it takes "
            f"{cost:.0%} of the rows, and the budget is a ceiling: ask with policy cfo and budget 1"
        )


def show_summary(summary: Summary) -> None:
    """Two tables that fit 100 columns: means, with their 95 % intervals below them."""
    out = console()
    if summary.graded:
        out.print(f"{summary.questions} questions, {summary.graded} with gold answers; F1 of")
        out.print(f"  full recompute     {_interval(summary.full_f1)}")
        out.print(f"  without documents  {_interval(summary.no_documents_f1)}")
    else:
        out.print(f"{summary.questions} questions without gold answers: no F1, drift alone")
    cost = {
        "cost": "repair_ratio", "TTFT": "ttft_ratio", "first KL": "first_kl",
        "mean KL": "mean_kl", "top-1": "agreement",
    }  # fmt: skip
    answers = {
        "F1": "f1", "F1 lost": _LOSS, "ROUGE-L": "rouge_l", "changed": "changed",
        "no answer": "unanswered",
    }  # fmt: skip
    for columns in (cost, answers):
        out.print()
        out.print(_summary_table(summary, columns))
    for line in (
        "cost: rows × layers recomputed ÷ reused, probes included; TTFT: of full recompute's;",
        "KL in nats to full recompute; brackets: 95 % bootstrap interval",
    ):
        out.print(line, style="dim")


def _summary_table(summary: Summary, columns: dict[str, str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("policy", no_wrap=True)
    for name in columns:
        table.add_column(name, no_wrap=True)
    for arm in summary.arms:
        figures = [
            arm.f1_loss if field == _LOSS else arm.figures.get(field) for field in columns.values()
        ]
        table.add_row(arm.name, *("–" if f is None else f"{f[0]:.3f}" for f in figures))
        table.add_row("", *(Text(_bounds(f), style="dim") for f in figures))
    return table


def _interval(value: Interval | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} {_bounds(value)}"


def _bounds(value: Interval | None) -> str:
    return "" if value is None else f"[{value[1]:.3f}, {value[2]:.3f}]"
