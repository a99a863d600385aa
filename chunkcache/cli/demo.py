"""`demo`: the main job on real documents, every answer given twice and compared."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from chunkcache.cli.answers import show_citations
from chunkcache.cli.chunks import chunks_warmed
from chunkcache.cli.context import shared
from chunkcache.cli.documents import files_read
from chunkcache.cli.screen import console, legend, ribbon, visible
from chunkcache.cli.stdlib_pages import write_pages
from chunkcache.errors import InvalidRequest
from chunkcache.protocol import (
    AnswerDelta,
    AnswerRequest,
    AnswerStarted,
    Message,
    Sampling,
)

if TYPE_CHECKING:
    from rich.console import Console

    from chunkcache.cli.context import Shared
    from chunkcache.config import Settings
    from chunkcache.evaluate.compare import Comparison, Reference
    from chunkcache.protocol import AnswerEvent
    from chunkcache.service import ChunkCache

STDLIB_QUESTIONS = (
    "Which argument of json.dumps sorts the keys of dictionaries in the output?",
    "What does shutil.which return when the command is not found?",
    "How does textwrap.shorten treat whitespace before it cuts the text?",
    "What happens in subprocess.run when check is True and the exit code is not zero?",
    "Who is responsible for deleting the file made by tempfile.mkstemp?",
)
_TOP_K = 6
_MAX_TOKENS = 48


def demo(
    context: typer.Context,
    docs: Annotated[
        Path | None,
        typer.Argument(help="Folder of documents; default: Python's own library.", exists=True),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="One question a line.", dir_okay=False)
    ] = None,
) -> None:
    """Ingest, warm, ask; each question with full recompute and with the chunk cache."""
    out = console()
    common = shared(context)
    asked = _given_questions(questions) if questions else [] if docs else list(STDLIB_QUESTIONS)
    with common.open() as cache:
        collection = "default"
        folder = docs or _stdlib_folder(out, common.settings.home)
        known = len(cache.documents(collection=collection))
        if known:
            out.print(f"Starting from the persisted store: {known} documents known.", style="bold")
        _ingest(common, out, cache, folder)
        _warm(common, out, cache)
        asked = asked or _questions_about(cache, folder)
        cache.ask("ready?", documents=[], max_tokens=1)  # touches every weight once
        rows = [_ask_twice(out, cache, question) for question in asked]
    _summary(out, rows)
    _name_the_page(out, common.settings)


def _name_the_page(out: Console, settings: Settings) -> None:
    """How to see the same documents and the cache in a browser."""
    command = f"chunkcache --home {shlex.quote(str(settings.home))} serve"
    out.print()
    out.print(
        f"See it in a browser: {command} (after make demo: make serve), then open "
        f"http://{settings.server.host}:{settings.server.port}/",
        markup=False,
        soft_wrap=True,
    )


def _stdlib_folder(out: Console, home: Path) -> Path:
    folder = home / "stdlib-pages"
    out.print(f"{write_pages(folder)} pages of Python's own library, rendered by pydoc")
    return folder


def _ingest(common: Shared, out: Console, cache: ChunkCache, folder: Path) -> None:
    began = time.perf_counter()
    with common.progress("files") as progress:
        report = cache.ingest([folder], on_progress=files_read(progress))
    out.print(
        f"ingested: {report.added} added, {report.updated} updated, {report.unchanged} unchanged, "
        f"{report.skipped} skipped ({report.chunks} new chunks) "
        f"in {time.perf_counter() - began:.1f} s"
    )


def _warm(common: Shared, out: Console, cache: ChunkCache) -> None:
    with common.progress("chunks") as progress:
        report = cache.warm(on_progress=chunks_warmed(progress))
    out.print(
        f"warmed: {report.computed} chunks computed, {report.already_warm} were in the store "
        f"({report.tokens} tokens in {report.seconds:.1f} s); {report.warm} are there now"
    )
    if report.not_kept_reason:
        out.print(f"not kept: {report.not_kept_reason}", style="yellow")
    if report.stopped_reason:
        out.print(f"warm-up stopped: {report.stopped_reason}", style="yellow")


def _given_questions(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"--questions: cannot read {file}: {error}") from error
    given = [line.strip() for line in lines if line.strip()]
    if not given:
        raise InvalidRequest.of("--questions", str(file), "one question a line", "it is empty")
    return given


def _questions_about(cache: ChunkCache, docs: Path) -> list[str]:
    documents = cache.documents()
    if not documents:
        raise InvalidRequest.of("docs", str(docs), "a folder with documents", "none could be read")
    step = max(1, len(documents) // 5)
    return [f"What does {d.title} say?" for d in documents[::step][:5]]


def _ask_twice(out: Console, cache: ChunkCache, question: str) -> tuple[str, Reference, Comparison]:
    from chunkcache.evaluate.compare import cached_answer, full_answer

    request = AnswerRequest(
        messages=[Message(role="user", content=question)],
        top_k=_TOP_K,
        sampling=Sampling(max_tokens=_MAX_TOKENS),
    )
    out.print()
    out.print(Text(question, style="bold"))
    out.print("full recompute: ", end="", style="dim")
    reference = full_answer(cache, request, _write)
    out.print()
    out.print("chunk cache:    ", end="", style="dim")
    comparison = cached_answer(cache, request, reference, _write)
    out.print()
    show_citations(out, comparison.answer.citations)
    out.print(ribbon(comparison.answer.report))
    return question, reference, comparison


def _write(event: AnswerEvent) -> None:
    if isinstance(event, AnswerStarted):
        return
    if isinstance(event, AnswerDelta):
        sys.stdout.write(visible(event.text.replace("\n", " ")))
        sys.stdout.flush()


def _summary(out: Console, rows: list[tuple[str, Reference, Comparison]]) -> None:
    out.print()
    out.print(legend())
    table = Table(box=None, header_style="bold")
    table.add_column("question", max_width=36)
    for name in (
        "TTFT full", "TTFT cache", "speed-up", "reused", "recomputed", "fresh", "rung",
        "drift KL", "top-1", "same text",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for question, reference, comparison in rows:
        full, report = reference.answer.report, comparison.answer.report
        table.add_row(
            Text(question),
            f"{full.timings.ttft_ms:.0f} ms",
            f"{report.timings.ttft_ms:.0f} ms",
            f"{full.timings.ttft_ms / report.timings.ttft_ms:.1f}x",
            str(report.reused_tokens),
            str(report.recomputed_tokens),
            str(report.computed_tokens),
            str(report.rung),
            f"{comparison.drift.mean_kl:.3f}",
            f"{comparison.drift.agreement:.0%}",
            "yes" if comparison.same_text else "no",
        )
    out.print(table)
    out.print(
        "drift: KL(full || cache) of next-token distributions in nats and top-1 agreement, along "
        "the fully recomputed answer; 0 is exact.",
        style="dim",
    )
