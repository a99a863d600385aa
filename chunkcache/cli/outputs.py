"""Files that users name for a command to write: looked at before the work is done, not after it.

What is there is not lost by a slip of the hand: it is replaced only where that was asked for, or
where one picture takes another's place, since both can be drawn again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from chunkcache.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Also over a file that is there.")]

PNG, SVG = b"\x89PNG", b"<svg"


def claim_file(name: str, path: Path, *, overwrite: bool) -> None:
    """Whether a file may be written there. It is not made yet.

    Raises:
        InvalidRequest: one is there and `overwrite` is not set; it is a folder or a device; or its
            folder cannot be written.
    """
    if _is_there(name, path) and not overwrite:
        raise _refusal(name, path, "a new file", "--overwrite replaces what is there")


def claim_folder(name: str, path: Path) -> None:
    """Nothing, if a folder may be made there. It is not made yet.

    Raises:
        InvalidRequest: something is there; or as `claim_file` says.
    """
    if _is_taken(name, path):
        raise _refusal(name, path, "a new folder", "give another name")


def claim_picture(name: str, path: Path, magic: bytes) -> None:
    """Whether a picture may be written there: where nothing is, or what begins with `magic`.

    Raises:
        InvalidRequest: something else is there; or as `claim_file` says.
    """
    if not _is_there(name, path) or not path.stat().st_size:
        return
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise _refusal(name, path, "a new file or another such picture", "give it another name")


def _is_there(name: str, path: Path) -> bool:
    is_taken = _is_taken(name, path)
    if is_taken and not path.is_file():
        raise _refusal(name, path, "a file", "it is a folder, a device or a broken link")
    return is_taken


def _is_taken(name: str, path: Path) -> bool:
    try:
        if path.exists() or path.is_symlink():
            return True
    except OSError as error:  # a name too long, a folder that may not be entered
        raise _refusal(name, path, "a path", str(error.strerror)) from error
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise _refusal(name, path, "in a folder that can be written", f"look at {folder}")
    return False


def _refusal(name: str, path: Path, limit: str, hint: str) -> InvalidRequest:
    return InvalidRequest.of(name, str(path), limit, hint)
