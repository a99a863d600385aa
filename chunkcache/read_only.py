"""Homes that can be read and not written: on a read-only file system, or another user's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from chunkcache.errors import StoreError
from chunkcache.home import CATALOG_FILE, INDEX_FOLDER, STORE_FILE, STORE_FOLDER

if TYPE_CHECKING:
    from pathlib import Path

WHAT_TO_DO = (
    "use a home of your own, or run this as a user who may write there; chunkcache ls, stats, "
    "check, export, backup, search, ask, eval, quota, and gc and purge without --yes, only read"
)


def can_be_written(path: Path) -> bool:
    """Whether this process may change a file or folder that is there, or make one that is not."""
    while not path.exists() and path.parent != path:
        path = path.parent
    return os.access(path, os.W_OK)


def unwritable_part(home: Path) -> Path | None:
    """What of the home cannot be written, first of all itself; None: all that is in it can."""
    store = home / STORE_FOLDER
    held = (home, home / CATALOG_FILE, store, store / STORE_FILE, home / INDEX_FOLDER)
    return next((path for path in held if not can_be_written(path)), None)


def check_writable(home: Path) -> None:
    """Nothing, if whatever is in the home can be written, too.

    Raises:
        StoreError: something cannot; nothing has been done.
    """
    if (part := unwritable_part(home)) is not None:
        raise StoreError(
            f"home: {part} cannot be written: another user's, or on a read-only file system. "
            f"Hint: {WHAT_TO_DO}"
        )
