"""`serve`: the endpoint."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from chunkcache.cli.context import shared
from chunkcache.errors import InvalidRequest


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")
    ] = None,
) -> None:
    """Serve an OpenAI-compatible endpoint until SIGTERM, then drain and exit 0."""
    from chunkcache.server.run import can_listen
    from chunkcache.server.run import serve as run

    limits = shared(context).settings.server
    if host == "":  # would be every address of this machine
        raise InvalidRequest.of("--host", host, "an address", "0.0.0.0 stands for all of them")
    if not can_listen(host or limits.host, limits.port if port is None else port):
        raise typer.Exit(1)
    cache = shared(context).open(recompresses=True)
    try:
        health = cache.load()
        cache.keep_level()
    except BaseException:
        cache.close()
        raise

    def announce(url: str) -> None:
        said = {"event": "serving", "model": cache.model_id, "url": f"{url}/v1", "page": f"{url}/"}
        plain = f"chunkcache serves {cache.model_id} at {url}/v1\nits page: {url}/"
        typer.echo(json.dumps(said) if shared(context).log_json else plain)
        if not health["reuse"]:
            typer.echo("chunk reuse is OFF: the model did not pass the gate", err=True)

    raise typer.Exit(run(cache, host, port, on_ready=announce))
