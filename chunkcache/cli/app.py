"""The typer application: options every command shares, then the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chunkcache.cli import (
    answers,
    chunks,
    demo,
    doctor,
    documents,
    evaluation,
    hitrate,
    keeping,
    serving,
    upkeep,
)
from chunkcache.cli.context import Shared, assign, check_home
from chunkcache.cli.logging import LogLevel, configure_logging
from chunkcache.config import load_settings
from chunkcache.version import __version__

app = typer.Typer(
    name="chunkcache",
    help="Reuse the KV cache of retrieved passages, and say how exact each answer is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    documents.ingest,
    documents.ls,
    documents.rm,
    documents.search,
    chunks.warm,
    chunks.fit_basis,
    chunks.check,
    keeping.keep,
    keeping.quota,
    upkeep.stats,
    upkeep.gc,
    upkeep.purge,
    upkeep.export,
    upkeep.backup,
    answers.ask,
    serving.serve,
    doctor.doctor,
    demo.demo,
):
    app.command()(command)
app.command("import")(upkeep.import_)
app.command("eval")(evaluation.evaluate)
app.command()(evaluation.calibrate)
app.command()(hitrate.hitrate)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _shared_options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with settings.", dir_okay=False)
    ] = None,
    home: Annotated[
        str | None,  # of a Path one could not tell an empty name from the folder one is in
        typer.Option("--home", metavar="<path>", help="Where catalog, indexes and store live."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Hub id, local folder, or embedded:NAME.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, e.g. --set retrieval.top_k=6. Repeatable."),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option("--log-level", help="Least severe log lines shown.")
    ] = LogLevel.WARNING,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Do not say on stderr how far a command is.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print it and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    configure_logging(log_level, as_json=log_json)
    overrides: dict[str, Any] = {}
    for text in settings or []:
        assign(overrides, text)
    if home is not None:
        overrides["home"] = Path(home) if home else home
    if model is not None:
        overrides.setdefault("model", {})["name"] = model
    loaded = load_settings(config, **overrides)
    check_home(loaded.home)
    context.obj = Shared(loaded, log_json=log_json, quiet=quiet)
