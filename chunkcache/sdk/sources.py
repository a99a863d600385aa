"""What to ingest: files, folders and bytes in memory, each under the name it will be known by."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PIECE_BYTES = 1 << 20

Given = str | os.PathLike[str] | tuple[str, bytes]
"""A path of a file or folder, or a name and bytes."""


@dataclass(frozen=True, slots=True)
class Source:
    """A name and where its bytes are; files are read when they are needed, not held."""

    name: str
    content: Path | bytes

    def open(self) -> io.BufferedIOBase:
        """The bytes, from the start. Raises OSError."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        return self.content.open("rb")

    def sha256(self) -> str:
        """Digest of the bytes, in hexadecimal. Raises OSError."""
        digest = hashlib.sha256()
        with self.open() as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()


def sources_of(given: Given | Iterable[Given]) -> list[Source]:
    """Everything that is meant, in an order that does not depend on the machine.

    A file goes by its name, a file in a folder by its path from the folder on, the folder's name
    included: `docs/guide/README.md`. Names that begin with a dot are skipped in folders; links to
    folders are not followed. Which types of file are read is the server's to say.

    Raises:
        InvalidRequest: a path leads nowhere, or two things would go by the same name.
    """
    several = [given] if isinstance(given, str | os.PathLike | tuple) else given
    found = [source for item in several for source in _sources(item)]
    for name, count in Counter(source.name for source in found).items():
        if count > 1:
            raise InvalidRequest.of(
                "paths", name, "one thing per name", "ingest the folder that holds both"
            )
    return found


def _sources(given: Given) -> Iterator[Source]:
    if isinstance(given, tuple):
        yield Source(*given)
        return
    path = Path(given)
    if path.is_dir():
        yield from _folder(path)
    elif path.is_file():
        yield Source(_printable(path.name), path)
    else:
        raise InvalidRequest.of("paths", str(path), "a file or folder", "check the path")


def _folder(folder: Path) -> Iterator[Source]:
    root = folder.resolve()
    for where, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(where, name)
            if not name.startswith(".") and path.is_file():
                relative = path.relative_to(root).as_posix()
                yield Source(_printable(f"{root.name}/{relative}".lstrip("/")), path)


def _printable(name: str) -> str:
    """File names may be any bytes; those that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
