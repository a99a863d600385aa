"""`ask`: one question from the command line."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from chunkcache.cli.context import shared
from chunkcache.cli.documents import AsJson, Collection, Tenant
from chunkcache.cli.screen import console, legend, ribbon, visible
from chunkcache.policy_names import RepairPolicyName
from chunkcache.protocol import AnswerDelta, AnswerFinished

if TYPE_CHECKING:
    from rich.console import Console

    from chunkcache.protocol import Citation, Report


def ask(
    context: typer.Context,
    question: str,
    mode: Annotated[str, typer.Option("--mode", help="auto, exact or full.")] = "auto",
    policy: Annotated[
        RepairPolicyName | None, typer.Option("--policy", help="Which rows are recomputed.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0, max=1, help="Share of reused rows.")
    ] = None,
    drift: Annotated[
        float | None,
        typer.Option("--drift", help="Largest expected drift, instead of policy and budget."),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0, max=64)] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2)] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    tenant: Tenant = "public",
    collection: Collection = "default",
    as_json: AsJson = False,
) -> None:
    """Answer a question from the documents, streaming, with citations and what it cost."""
    wishes: dict[str, Any] = {
        "mode": mode, "policy": policy, "budget": budget, "top_k": top_k,
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
        "exactness": None if drift is None else {"drift": drift},
        "tenant": tenant, "collection": collection,
    }  # fmt: skip
    out = console()
    with shared(context).open_to_read() as cache:
        for event in cache.stream(question, **wishes):
            if isinstance(event, AnswerDelta) and not as_json:
                sys.stdout.write(visible(event.text))
                sys.stdout.flush()
            if isinstance(event, AnswerFinished):
                if as_json:
                    typer.echo(json.dumps(event.model_dump(mode="json"), ensure_ascii=False))
                    return
                out.print()
                if event.finish_reason == "length":
                    said = f"cut at its limit of {event.completion_tokens} tokens; see --max-tokens"
                    out.print(f"note: the answer was {said}", style="yellow")
                show_citations(out, event.citations)
                show_report(out, event.report)


def show_citations(out: Console, citations: list[Citation]) -> None:
    """One line per passage, numbered in prompt order."""
    for number, cited in enumerate(citations, start=1):
        where = f"[{number}] {cited.title or cited.document_id} {cited.start_char}-{cited.end_char}"
        out.print(f"  {where}", style="dim")


def show_report(out: Console, report: Report) -> None:
    """The ribbon, then one line per span."""
    out.print(ribbon(report))
    out.print(legend())
    table = Table(
        "span", "tokens", "rung", "reused", "recomputed", "computed", "from",
        box=None, header_style="bold",
    )  # fmt: skip
    for span in report.spans:
        origin = span.tier or (f"computed ({span.miss})" if span.miss else "computed")
        origin += f", {span.codec}" if span.codec else ""
        figures = (span.tokens, span.rung, span.reused, span.recomputed, span.computed)
        name = f"{span.kind} {span.title or ''}".strip()
        table.add_row(name, *map(str, figures), origin)
    out.print(table)
    timings = report.timings
    beside = any(span.miss and span.computed for span in report.spans)
    out.print(
        f"{report.rung}: TTFT {timings.ttft_ms:.0f} ms; of {report.prompt_tokens} prompt tokens "
        f"{report.reused_tokens} reused, {report.recomputed_tokens} recomputed, "
        f"{report.computed_tokens} computed; cost {report.cost_ratio:.2f} of a full prefill"
        + ", beside the passages that were in no tier"
        * beside
    )
    if report.predicted_drift is not None:
        out.print(f"expected drift {report.predicted_drift:.3f} nats")
    for note in report.notes:
        out.print(f"note: {note}", style="yellow")
