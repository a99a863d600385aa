"""`eval`: what reuse costs in answers, on your own questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chunkcache.cli.context import shared
from chunkcache.cli.documents import Collection, Tenant
from chunkcache.cli.screen import console, progress_bar

if TYPE_CHECKING:
    from chunkcache.evaluate.quality import Summary
    from chunkcache.evaluate.quality.summary import Interval


def evaluate(
    context: typer.Context,
    questions: Annotated[
        Path,
        typer.Argument(
            help='JSON lines: {"question", "answers"?, "contexts"?: [{"title", "text"}]}.',
            exists=True, dir_okay=False,
        ),
    ],
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy, for every budget, or policy@budget. Repeatable."),
    ] = None,
    budgets: Annotated[
        list[float] | None, typer.Option("--budget", min=0, max=1, help="Repeatable.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="One JSON line per question; a run can be resumed.")
    ] = Path("evaluation.jsonl"),
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Write the frontier as PNG.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions taken.")] = None,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Questions left out first.")] = 0,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0, help="Passages.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 24,
    suffix: Annotated[
        str, typer.Option("--suffix", help="Follows every question, e.g. to ask for brevity.")
    ] = "",
    tenant: Tenant = "public",
    collection: Collection = "default",
) -> None:  # fmt: skip
    """Answer every question in full and from the cache; report drift, F1 and cost per policy."""
    from chunkcache.evaluate import quality

    arms = quality.parse_arms(policies or ["none", "question", "all"], budgets or [0.05, 0.15, 0.3])
    evaluation = quality.Evaluation(
        arms=tuple(arms), max_tokens=max_tokens, suffix=suffix, top_k=top_k,
        collection=collection, tenant=tenant,
    )  # fmt: skip
    asked = quality.read_questions(questions, limit=limit, skip=skip)
    with shared(context).open() as cache, progress_bar("questions") as bar:
        task = bar.add_task("eval", total=len(asked), note="")
        lines = quality.evaluate(
            cache, asked, evaluation, out,
            on_progress=lambda done, total, eta_s: bar.update(
                task, completed=done, note=f"{eta_s / 60:.0f} min left"
            ),
        )  # fmt: skip
        name = cache.model_id
    summary = quality.summarise(lines)
    show_summary(summary)
    if picture is not None:
        from chunkcache.evaluate.quality.picture import draw_frontier

        draw_frontier(summary, picture, title=f"{questions.name}, {len(lines)} questions, {name}")
    typer.echo(json.dumps({"questions": str(questions), "model": name, **summary.as_dict()}))


def show_summary(summary: Summary) -> None:
    """The table: means with 95 % intervals."""
    out = console()
    out.print(
        f"{summary.questions} questions; F1 of full recompute {_interval(summary.full_f1)}, "
        f"without documents {_interval(summary.no_documents_f1)}"
    )
    columns = {
        "cost": "repair_ratio", "TTFT": "ttft_ratio", "first KL": "first_kl",
        "mean KL": "mean_kl", "top-1": "agreement", "F1": "f1", "ROUGE-L": "rouge_l",
        "changed": "changed", "no answer": "unanswered",
    }  # fmt: skip
    table = Table("policy", *columns, "F1 lost", box=None, header_style="bold")
    for arm in summary.arms:
        cells = [_interval(arm.figures[field]) for field in columns.values()]
        table.add_row(arm.name, *cells, _interval(arm.f1_loss))
    out.print(table)
    out.print(
        "cost: rows × layers recomputed ÷ reused, probes included; TTFT: of full recompute's; "
        "KL in nats to full recompute; brackets: 95 % bootstrap interval",
        style="dim",
    )


def _interval(value: Interval) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
