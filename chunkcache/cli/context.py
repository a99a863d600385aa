"""What every command gets from the shared options."""

from __future__ import annotations

import tomllib
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from chunkcache.errors import ConfigError, InvalidRequest, shown
from chunkcache.home import CATALOG_FILE, STORE_FILE, STORE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

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

    def open_to_read(self) -> ChunkCache:
        """`open`, for what needs to write nothing: a home that cannot be written is read, alone.

        Raises:
            StoreError: there is no catalog to read, and none can be made.
        """
        from chunkcache.read_only import unwritable_part

        home, part = self.settings.home, unwritable_part(self.settings.home)
        if part is None or not (home / CATALOG_FILE).exists():
            return self.open()
        note = f"note: {part} cannot be written: it is read, and nothing is kept or counted in it"
        typer.echo(note, err=True)
        settings = self.settings
        if not (home / STORE_FOLDER / STORE_FILE).exists():  # none can be begun
            store = settings.store.model_copy(update={"disk_capacity_bytes": 0})
            settings = settings.model_copy(update={"store": store})
        from chunkcache.service import ChunkCache

        return ChunkCache(settings, reads_only=True)

    def progress(self, unit: str) -> AbstractContextManager[Progress]:
        """How far a long command is, on stderr, in so many of `unit`."""
        from chunkcache.cli.progress import progress

        return progress(unit, quiet=self.quiet)

    @contextmanager
    def catalog(self) -> Iterator[Catalog]:
        """The documents alone, to be looked at or removed; loads neither model nor embedder.

        A home that has none stays as it is: its name may be a slip of the hand.
        """
        from chunkcache.retrieval.open_catalog import open_catalog

        settings = self.settings
        with ExitStack() as ends:
            if not (settings.home / CATALOG_FILE).exists():
                nowhere = Path(ends.enter_context(TemporaryDirectory()))
                settings = settings.model_copy(update={"home": nowhere})
            yield ends.enter_context(closing(open_catalog(settings)))


def shared(context: typer.Context) -> Shared:
    """The `Shared` that the callback made.

    Raises:
        InvalidRequest: an argument that is no path is not in UTF-8; it could be stored nowhere.
    """
    assert isinstance(context.obj, Shared)
    for name, value in context.params.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                _check_text(name, one)
    return context.obj


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest.of(
            name, text, "in UTF-8", "bytes of another encoding stand for no letters here"
        ) from error


def check_home(home: Path) -> None:
    """Nothing, if it is a folder, or may become one.

    Raises:
        ConfigError: it, or what it would be in, is something else, or nobody can tell.
    """
    places = (home.absolute(), *home.absolute().parents)
    try:
        there = next(place for place in places if place.exists() or place.is_symlink())
        problem = "" if there.is_dir() else f"{there} is none"
    except OSError as error:  # a name too long, a folder that may not be entered
        problem = str(error.strerror)
    if problem:
        raise ConfigError(
            f"home: got {shown(str(home))}, must be a folder: {problem}. Hint: look at --home."
        )


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
