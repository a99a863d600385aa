"""`warm`, `fit-basis`, `check`: the chunk KV."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chunkcache.cli.context import shared
from chunkcache.cli.documents import Collection, Tenant
from chunkcache.cli.keeping import say_what_is_not_pinned
from chunkcache.cli.screen import console
from chunkcache.errors import ConfigError
from chunkcache.keep import Keep
from chunkcache.read_only import check_writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.cli.progress import Progress
    from chunkcache.config import StoreSettings
    from chunkcache.console.warming import WarmReport
    from chunkcache.service.warm import WarmProgress

_SHOWN_PROBLEMS = 20
_HOW_TO_FILL = "chunkcache check --fix gives them one, of what they hold now"


def warm(
    context: typer.Context,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes; the cores are shared among them.")
    ] = 1,
    retention: Annotated[
        Literal["warmed", "pinned"],
        typer.Option("--retention", help="pinned: not evicted, up to half the disk."),
    ] = "warmed",
    tenant: Tenant = "public",
    collection: Collection = "default",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compute the KV of every chunk ahead of the questions. Resumable; safe to kill."""
    from chunkcache.jobs.warmup import warm_in_processes

    common = shared(context)
    _check_outlives(common.settings.store)
    keep = Keep(retention="pinned") if retention == "pinned" else None  # firmer terms stay
    with common.progress("chunks") as progress:
        show = chunks_warmed(progress)
        if workers > 1:
            check_writable(common.settings.home)  # here, and not in each of them
            report = warm_in_processes(
                common.settings, workers, tenant=tenant, collection=collection, keep=keep,
                on_progress=show,
            )  # fmt: skip
        else:
            with common.open() as cache:
                report = cache.warm(
                    tenant=tenant, collection=collection, keep=keep, on_progress=show
                )
    if as_json:
        typer.echo(json.dumps({**report.model_dump(mode="json"), "warm": report.warm}))
    else:
        show_warm_report(report)
    if not report.is_complete:
        raise typer.Exit(1)


def chunks_warmed(progress: Progress) -> Callable[[WarmProgress], None]:
    """What a warm-up tells of each chunk."""
    step = progress.step("warm")

    def show(now: WarmProgress) -> None:
        note = f"{now.tokens_per_s:.0f} tokens/s"
        if now.left_out:
            note += f", {now.left_out} left out: no room"
        step(now.done, total=now.total, note=note)

    return show


def show_warm_report(report: WarmReport) -> None:
    """What was computed, and what became of it in the store."""
    out = console()
    rate = report.tokens / report.seconds if report.seconds else 0.0
    out.print(
        f"{report.chunks} chunks: {report.already_warm} were warm, {report.computed} computed "
        f"({report.tokens} tokens in {report.seconds:.1f} s, {rate:.0f} tokens/s); of these "
        f"{report.kept} are kept, {report.refused} refused, {report.failed} failed"
        + ("" if report.chunks else ". Hint: chunkcache ingest")
    )
    if report.left_out:
        out.print(
            f"{report.left_out} were not computed: the store would not have kept them",
            style="yellow",
        )
    if report.evicted:
        out.print(f"{report.evicted} that were stored have left the store again", style="yellow")
    if report.not_kept_reason:
        out.print(f"not kept: {report.not_kept_reason}", style="yellow")
    say_what_is_not_pinned(report.warmed_only)
    if report.stopped_reason:
        out.print(f"stopped: {report.stopped_reason}", style="yellow")


def _check_outlives(store: StoreSettings) -> None:
    """Raises ConfigError where what is warmed would go with this process."""
    if not (store.disk_capacity_bytes or store.shared or store.object):
        raise ConfigError(
            "store.disk_capacity_bytes: it is 0 and no shared or object tier is set, so what this "
            "command computed would be gone when it ends. Hint: raise it, or warm within the "
            "server: POST /v1/chunkcache/warm_up"
        )


def fit_basis(
    context: typer.Context,
    chunks: Annotated[int, typer.Option("--chunks", min=1, help="Chunks looked at.")] = 200,
    layers: Annotated[
        int,
        typer.Option("--layers", min=1, help="Coded together, by `joint`; 5 do well. 1: `basis`."),
    ] = 1,
    tenant: Tenant = "public",
    collection: Collection = "default",
) -> None:
    """Fit a basis to the chunks of a collection, for a codec; prints the setting."""
    common = shared(context)
    with common.open() as cache, common.progress("chunks") as progress:
        step = progress.step("fit-basis")
        digest = cache.fit_basis(
            tenant=tenant, collection=collection, most_chunks=chunks, layers=layers,
            on_progress=lambda done, total: step(done, total=total),
        )  # fmt: skip
    codec = "basis" if layers == 1 else "joint"
    console().print(f'store.codec = "{codec}(file={digest})"', soft_wrap=True, markup=False)


def check(
    context: typer.Context,
    fix: Annotated[
        bool, typer.Option("--fix", help="Remove wrong records, fill in missing checksums.")
    ] = False,
    drop_stale: Annotated[
        bool, typer.Option("--drop-stale", help="Remove records of other models and codecs.")
    ] = False,
) -> None:
    """Verify every stored record, both ways, and every passage and text of the catalog.

    Records: entries have their bytes, bytes have their entry. What is damaged in the catalog is
    named and never removed. What an earlier version wrote there has no checksum until it is written
    again or filled in: of what it holds then, so that damage from before is not found.
    """
    from chunkcache.service.diagnosis import check_catalog, check_records

    settings = shared(context).settings
    with shared(context).progress("records") as progress:
        step = progress.step("check")
        report = check_records(
            settings, fix=fix, drop_stale=drop_stale,
            on_progress=lambda done, total: step(done, total=total),
        )  # fmt: skip
    out = console()
    out.print(
        f"{report.records} records of {report.models} models, {report.size_bytes} bytes: "
        f"{report.ok} ok, {report.corrupt} corrupt, {report.orphans} orphans; "
        f"{report.removed} removed"
    )
    if drop_stale:
        out.print(
            f"{report.stale} were of another model than {settings.model.name}, or of another "
            f"lossy codec than {' and '.join(settings.store.codecs)}"
        )
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        out.print(f"  {problem}", style="yellow")
    if not report.clean and not fix:
        out.print("Hint: chunkcache check --fix removes what is wrong; it will be made again.")
    catalog = check_catalog(settings, fix=fix)
    if catalog is not None:
        out.print(
            f"{catalog.passages} sound passages of {catalog.documents} documents, "
            f"{len(catalog.damaged)} passages or texts damaged"
        )
        for problem in catalog.damaged[:_SHOWN_PROBLEMS]:
            out.print(f"  {problem}", style="yellow", markup=False)
        if catalog.without_checksum:
            filled = f"{catalog.filled} of them have one now" if fix else _HOW_TO_FILL
            out.print(
                f"{catalog.without_checksum} passages or texts are from an earlier version and "
                f"have no checksum; {filled}"
            )
    if (not report.clean and not fix) or (catalog is not None and catalog.damaged):
        raise typer.Exit(1)
