"""What every command gets from the shared options."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chunkcache.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import typer

    from chunkcache.cli.progress import Progress
    from chunkcache.config import Settings
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.service import ChunkCache


@dataclass(frozen=True, slots=True)
class Shared:
    """The settings in force, how lines are written, and how to open the cache."""

    settings: Settings
    log_json: bool = False
    quiet: bool = False

    def open(self, *, recompresses: bool = False) -> ChunkCache:
        """The in-process cache; loads torch (a second or two). `recompresses`: see `ChunkCache`.

        Raises:
            StoreError: the home cannot be written.
        """
        from chunkcache.read_only import check_writable

        check_writable(self.settings.home)
        from chunkcache.service import ChunkCache

        return ChunkCache(self.settings, recompresses=recompresses)

    def progress(self, unit: str) -> AbstractContextManager[Progress]:
        """How far a long command is, on stderr, in so many of `unit`."""
        from chunkcache.cli.progress import progress

        return progress(unit, quiet=self.quiet)

    def catalog(self) -> Catalog:
        """The documents alone, to be closed by the caller; loads neither model nor embedder."""
        from chunkcache.retrieval.open_catalog import open_catalog

        return open_catalog(self.settings)


def shared(context: typer.Context) -> Shared:
    """The `Shared` that the callback made."""
    assert isinstance(context.obj, Shared)
    return context.obj


def assign(into: dict[str, Any], text: str) -> None:
    """`section.field=value` into nested dictionaries; the value is TOML where it is that.

    Raises:
        ConfigError: it is not of that form.
    """
    name, found, value = text.partition("=")
    if not found or not name.strip():
        raise ConfigError(f"--set: got {text!r}, must be NAME=VALUE. Hint: retrieval.top_k=6.")
    *sections, field = name.strip().split(".")
    for section in sections:
        into = into.setdefault(section, {})
        if not isinstance(into, dict):
            raise ConfigError(f"--set: {name.strip()!r} is below a setting that has a value.")
    try:
        into[field] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        into[field] = value
