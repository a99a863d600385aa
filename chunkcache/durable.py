"""Files that are on disk when it is said that they are."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from chunkcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class NameNotSynced(OSError):
    """The new content is there and is read; after a power failure it may be the old one again."""


def write_durably(path: Path, data: bytes) -> None:
    """Write, sync, rename, sync the name: readers see the old content or the new, also after a
    power failure. It is the new one once this returns.

    For one writer of a path at a time.

    Raises:
        NameNotSynced: it is the new one, but its folder cannot be synced.
        OSError: it cannot be written, and is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise NameNotSynced(error.errno, error.strerror) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name once all of it is on disk; else nothing is left.

    For what users asked for, in a folder that is made; several processes may write at a time.

    Raises:
        StoreError: it cannot be written. Where only its folder cannot be synced, it is there all
            the same, whole; after a power failure it may be gone, or the old one again.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it was never made: the folder is a file, or the name too long
            partial.unlink()


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a power failure. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
