"""`ingest`, `ls`, `rm`, `search`: the documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chunkcache.cli.context import shared
from chunkcache.cli.screen import console, visible
from chunkcache.errors import InvalidRequest, NotFound, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.cli.progress import Progress

_LONGEST_TENANT = 256
_SHOWN_PROBLEMS = 20
_SHOWN_NAME_CHARS = 30
_HOW_TO_FILL = "Hint: chunkcache ingest"


def tenant_named(name: str) -> str:
    """A tenant's name as it may be said over HTTP, too. Raises InvalidRequest."""
    if not 0 < len(name) <= _LONGEST_TENANT:
        limit = f"of 1 to {_LONGEST_TENANT} characters"
        raise InvalidRequest.of("--tenant", name, limit, "leave it out for tenant public")
    return name


Tenant = Annotated[str, typer.Option("--tenant", help="Whose documents.", callback=tenant_named)]
Collection = Annotated[str, typer.Option("--collection", help="Which collection of theirs.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


def ingest(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", exists=True)],
    tenant: Tenant = "public",
    collection: Collection = "default",
) -> None:
    """Read files of text, office documents and pre-chunked jsonl; unchanged ones cost a hash."""
    with shared(context).open() as cache, shared(context).progress("files") as progress:
        report = cache.ingest(
            paths, tenant=tenant, collection=collection, on_progress=files_read(progress)
        )
    out = console()
    out.print(
        f"added {report.added}, updated {report.updated}, renamed {report.renamed}, "
        f"unchanged {report.unchanged}, skipped {report.skipped}; "
        f"{report.chunks} new chunks, {report.tokens} tokens"
    )
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        out.print(f"  {problem}", style="yellow")
    if len(report.problems) > _SHOWN_PROBLEMS:
        out.print(f"  … and {len(report.problems) - _SHOWN_PROBLEMS} more")
    taken = report.added + report.updated + report.renamed + report.unchanged
    if report.problems and not taken:
        raise typer.Exit(1)


def files_read(progress: Progress) -> Callable[[int, int, str], None]:
    """What an ingest tells of each file."""
    step = progress.step("ingest")
    return lambda done, total, name: step(
        done, total=total, note=visible(Path(name).name[:_SHOWN_NAME_CHARS])
    )


def ls(
    context: typer.Context,
    tenant: Tenant = "public",
    collection: Collection = "default",
    as_json: AsJson = False,
) -> None:
    """List the documents of a collection, and where each is from. Loads no model."""
    with shared(context).catalog() as catalog:
        documents = catalog.documents(tenant, collection)
    if as_json:
        for document in documents:
            shown = {**document.model_dump(mode="json"), "path": document.path}
            typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    out = console()
    table = Table("id", "title", "path", "chunks", "tokens", "bytes", box=None, header_style="bold")
    table.columns[0].no_wrap = True
    table.columns[2].overflow = "fold"  # a path that is cut cannot be copied
    for document in documents:
        where = document.path or document.name
        figures = (document.num_chunks, document.num_tokens, document.size_bytes)
        table.add_row(document.document_id, document.title[:60], where, *map(str, figures))
    out.print(table)
    out.print(f"{len(documents)} documents{'' if documents else f'. {_HOW_TO_FILL}'}")


def rm(
    context: typer.Context,
    document_ids: Annotated[list[str], typer.Argument(help="Ids, as `ls` shows them.")],
    tenant: Tenant = "public",
    collection: Collection = "default",
) -> None:
    """Remove documents; their chunks are unreachable at once. Loads no model."""
    with shared(context).catalog() as catalog:
        named = list(dict.fromkeys(document_ids))
        missing = [name for name in named if not catalog.remove_document(name, tenant, collection)]
    console().print(f"removed {len(named) - len(missing)}")
    if missing:
        raise NotFound(
            f"document {shown(missing[0])}: there is none of that id, as of {len(missing)} of "
            f"{len(named)} named. Hint: chunkcache ls."
        )


def search(
    context: typer.Context,
    query: str,
    top_k: Annotated[int, typer.Option("--top-k", min=1, max=64)] = 4,
    tenant: Tenant = "public",
    collection: Collection = "default",
    as_json: AsJson = False,
) -> None:
    """Show the passages a question would be answered from."""
    with shared(context).open_to_read() as cache:
        passages = cache.search(query, top_k=top_k, tenant=tenant, collection=collection)
    if not passages:
        typer.echo(f"no passage was found in {visible(collection)}. {_HOW_TO_FILL}", err=True)
    out = console()
    for rank, passage in enumerate(passages, start=1):
        if as_json:
            typer.echo(json.dumps(passage.model_dump(), ensure_ascii=False))
            continue
        out.print(f"{rank}. {passage.score:.4f}", style="bold", end=" ")
        out.print(passage.title, f"[{passage.start_char}-{passage.end_char}]")
        out.print("   " + " ".join(passage.text.split())[:160], style="dim")
