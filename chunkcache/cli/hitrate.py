"""`hitrate`: how often passages come again, and how large a cache should be for it."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from chunkcache.cli.context import shared
from chunkcache.cli.outputs import SVG, Overwrite, claim_file, claim_picture
from chunkcache.cli.screen import console
from chunkcache.durable import whole_file
from chunkcache.errors import InvalidRequest
from chunkcache.read_only import can_be_written

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.cli.progress import Progress
    from chunkcache.evaluate.hitrate import Findings, RecordSizes, Trace


class TraceForm(StrEnum):
    """What a trace may be in."""

    CHUNKS = "chunks"
    RAGPULSE = "ragpulse"
    MOONCAKE = "mooncake"
    LMCACHE = "lmcache"
    COLUMNS = "columns"
    ORACLE = "oracle"


class ExportForm(StrEnum):
    """What a trace can be written in."""

    CHUNKS = "chunks"
    ORACLE = "oracle"
    LMCACHE = "lmcache"


Source = Annotated[
    str | None,
    typer.Argument(
        help="File or folder of a trace, or zipf:alpha=0.8,chunks=5000,... "
        "Omitted: what requests to this service looked up."
    ),
]
FormOption = Annotated[
    TraceForm | None, typer.Option("--form", help="Of the trace; omitted: told by itself.")
]
Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory", help="Sizes to try: 10% of all distinct passages, 4GB, 512MiB. Repeatable."
    ),
]
Disk = Annotated[str, typer.Option("--disk", help="Disk below each of them, in the same words.")]
Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help="windowed (the service's), lru, fifo, gdsf. Repeatable."),
]
Target = Annotated[
    float, typer.Option("--target", min=0.01, max=1.0, help="Hit rate to advise on.")
]
BytesPerToken = Annotated[
    int | None,
    typer.Option(
        "--bytes-per-token", min=1, help="KV of a token, where the trace does not say it."
    ),
]
TokensPerS = Annotated[
    float, typer.Option("--tokens-per-s", min=0.001, help="At which passages are computed.")
]
DiskRate = Annotated[
    float, typer.Option("--disk-gb-per-s", min=0.001, help="At which the disk is read.")
]
Optimum = Annotated[
    bool, typer.Option("--optimum", help="Also what no policy could exceed; needs highspy.")
]
Picture = Annotated[Path | None, typer.Option("--picture", help="Write the curve as SVG.")]
Export = Annotated[Path | None, typer.Option("--export", help="Write the trace there, and end.")]
ExportFormOption = Annotated[
    ExportForm,
    typer.Option("--export-form", help="For this tool, libCacheSim or LMCache's simulator."),
]
ByAccess = Annotated[
    bool, typer.Option("--by-access", help="Every passage as a request of its own.")
]


def hitrate(
    context: typer.Context,
    trace: Source = None,
    form: FormOption = None,
    memory: Memory = None,
    disk: Disk = "0",
    policies: Policies = None,
    target: Target = 0.9,
    bytes_per_token: BytesPerToken = None,
    tokens_per_s: TokensPerS = 20_000.0,
    disk_gb_per_s: DiskRate = 5.0,
    optimum: Optimum = False,
    picture: Picture = None,
    export: Export = None,
    export_form: ExportFormOption = ExportForm.CHUNKS,
    by_access: ByAccess = False,
    overwrite: Overwrite = False,
) -> None:
    """Replay requests through the service's tiers and policies: hit rates, and sizes to buy.

    Replays of this service's own requests leave the curve for its page. Loads no model.
    """
    from chunkcache.evaluate import hitrate as tool

    home = shared(context).settings.home
    if export is not None:
        claim_file("--export", export, overwrite=overwrite)
    elif picture is not None:
        claim_picture("--picture", picture, SVG)
    for field, amounts in {"--memory": memory or [], "--disk": [disk]}.items():
        for amount in amounts:
            tool.parse_bytes(field, amount, 0)  # now, and not when the trace has been read
    source, sizes = _source(trace, form, bytes_per_token, home)
    source = source.by_access() if by_access else source
    if export is not None:
        _export(source, sizes, export, export_form)
        return
    wishes = tool.Wishes(
        policies=policies or (tool.SHIPPED, "lru"), memory=memory or tool.SWEEP, disk=disk,
        target=target, optimum=optimum,
        costs=tool.Costs(tokens_per_s, tool.Device(disk_gb_per_s * 1e9, 1e-4)),
    )  # fmt: skip
    with shared(context).progress("requests") as progress:
        step = partial(_reading, progress)
        found = tool.analyse(source, sizes, wishes, step)
        if trace is None and can_be_written(home):
            _keep(found, home, step)
    show(found)
    if picture is not None:
        limits = {"an infinite cache": found.workload.facts.highest_token_hit_rate}
        drawn = tool.draw_curve(found.lines(), title=source.name, limits=limits)
        with whole_file(picture) as file:
            file.write(drawn.encode())
    if trace is None and not can_be_written(home):
        typer.echo(f"the page keeps its curve: {home} cannot be written", err=True)
    typer.echo(json.dumps(found.as_dict()))


def _source(
    trace: str | None, form: TraceForm | None, bytes_per_token: int | None, home: Path
) -> tuple[Trace, RecordSizes]:
    """The trace, and what its records take: as asked for, as it says, or a large model's."""
    from chunkcache.evaluate import hitrate as tool

    asked = tool.RecordSizes(bytes_per_token) if bytes_per_token else None
    if trace is None:
        source = tool.read_service_log(home)
    elif not trace:
        raise InvalidRequest.of("trace", trace, "a file, a folder or zipf:…", "leave it out")
    elif trace.startswith(tool.ZIPF):
        source = tool.ZipfTraffic.parse(trace).trace()
    else:
        source = tool.read_trace(Path(trace), form, bytes_per_token=bytes_per_token or 1)
    return source, asked or source.sizes or tool.RecordSizes()


def _export(source: Trace, sizes: RecordSizes, path: Path, form: ExportForm) -> None:
    from chunkcache.evaluate import hitrate as tool

    if form is ExportForm.ORACLE:
        said = f"{tool.write_oracle_general(source, path, sizes)} accesses"
    elif form is ExportForm.LMCACHE:
        said = f"{tool.write_lmcache(source, path, sizes)} requests"
    else:
        said = f"{tool.write_chunk_lines(source, path)} requests"
    console().print(f"{said} of {source.name} in {path}")


def _keep(
    found: Findings, home: Path, step: Callable[[str, int | None], Callable[[int], None]]
) -> None:
    """The page shows memory alone, with the service's policy, whatever was asked for here."""
    from chunkcache.evaluate import hitrate as tool

    workload = found.workload
    whole = workload.facts.footprint_bytes
    sizes = [tool.parse_bytes("--memory", size, whole) for size in tool.SWEEP]
    points = tool.sweep(
        workload, [tool.SHIPPED], sizes, on_progress=step("page", workload.facts.requests)
    )
    tool.keep_sizing(home, workload.trace, points[tool.SHIPPED])


def _reading(progress: Progress, name: str, total: int | None) -> Callable[[int], None]:
    """What to call with the number of requests read, in one reading of the trace."""
    step = progress.step(name, total)
    every = max(1, (total or 25_600) // 100)  # told of each, a bar takes longer than a replay

    def show(done: int) -> None:
        if not done % every or done == total:
            step(done)

    return show


def show(found: Findings) -> None:
    """Tables that fit 100 columns, and the advice."""
    from chunkcache.evaluate.hitrate.amounts import shown_bytes

    out, facts, workload = console(), found.workload.facts, found.workload
    out.print(workload.trace.name)
    out.print(
        f"{facts.requests} requests, {facts.accesses} passages, {facts.distinct} of them distinct, "
        f"{facts.once} used once"
    )
    out.print(
        f"these take {shown_bytes(facts.footprint_bytes)} of memory, "
        f"{shown_bytes(facts.disk_footprint_bytes)} of disk "
        f"({workload.sizes.bytes_per_token} bytes a token)\n"
    )
    reuse = Table("what must be the same", "passages", "tokens", box=None, pad_edge=False)
    for words, shares in {
        "the whole prompt before it": found.reuse.exact_prefix,
        "the passages before it, in order": found.reuse.ordered_prefix,
        "the passages before it, in any order": found.reuse.same_set,
        "nothing: any context": found.reuse.any_context,
    }.items():
        reuse.add_row(words, *(f"{share:.4f}" for share in shares))
    out.print("reuse by a cache without end")
    out.print(reuse)
    out.print()
    out.print(_points(found))
    out.print(
        "hits: share of passage tokens; time: share saved of computing all; per s: accesses "
        "replayed",
        style="dim",
    )
    out.print(f"\n{found.advice.sentence()}")


def _points(found: Findings) -> Table:
    """A row for each policy and size; what only a disk has is left out without one."""
    from chunkcache.evaluate.hitrate.amounts import shown_bytes
    from chunkcache.evaluate.hitrate.findings import OPTIMUM

    first = next(iter(found.points.values()))[0].replay
    below = [tier.name for tier in first.tiers[1:]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ["hits", *(f"from {name}" for name in below), "objects", "bytes missed", "time"]
    for name in ["policy", "memory", *columns, "per s", *(f"{n} written" for n in below)]:
        table.add_column(name, no_wrap=True, justify="left" if name == "policy" else "right")
    for policy, line in found.points.items():
        for point in line:
            replay = point.replay
            figures = [
                replay.hit_rate, *(t.hit_tokens / replay.tokens for t in replay.tiers[1:]),
                replay.object_hit_rate, replay.byte_miss_rate, replay.time_saved,
            ]  # fmt: skip
            table.add_row(
                policy, shown_bytes(point.memory_bytes), *(f"{f:.4f}" for f in figures),
                f"{replay.accesses_per_s:.0f}",
                *(shown_bytes(tier.written_bytes) for tier in replay.tiers[1:]),
            )  # fmt: skip
    for size, rate in (found.optimum or {}).items():
        table.add_row(OPTIMUM, shown_bytes(size), f"{rate:.4f}")
    return table
