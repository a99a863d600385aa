"""Files to ingest: what paths and folders hold, in an order that does not depend on the machine."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chunkcache.retrieval.documents import printable
from chunkcache.retrieval.loaders import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(slots=True)
class Found:
    """Resolved paths of files, each once, and what was left out, with the reason."""

    files: list[Path] = field(default_factory=list)
    skipped: int = 0
    problems: list[str] = field(default_factory=list)  # "path: reason"


def find_files(paths: Iterable[Path]) -> Found:
    """The files that `paths` mean: a file itself, a folder all below it, sorted by name.

    In folders, names that begin with a dot and unknown suffixes are skipped and counted; a file
    that was named is never skipped for its name. Links are followed, a folder is entered once
    however many links lead to it. Nothing is fatal: what cannot be read is a problem in the result.
    """
    found = Found()
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            left_out: Counter[str] = Counter()
            _walk(path, found, seen, left_out)
            for what, count in sorted(left_out.items()):
                found.skipped += count
                found.problems.append(f"{printable(path)}: {count} skipped: {what}")
        elif path.is_file():
            _take(path, found, seen)
        else:
            found.skipped += 1
            reason = "not a regular file" if path.exists() else "there is no such file or folder"
            found.problems.append(f"{printable(path)}: {reason}")
    return found


def _take(path: Path, found: Found, seen: set[Path]) -> None:
    resolved = path.resolve()
    if resolved not in seen:
        seen.add(resolved)
        found.files.append(resolved)


def _walk(folder: Path, found: Found, seen: set[Path], left_out: Counter[str]) -> None:
    resolved = folder.resolve()
    if resolved in seen:
        return
    seen.add(resolved)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        found.skipped += 1
        found.problems.append(f"{printable(folder)}: cannot be listed: {error.strerror}")
        return
    for name in names:
        path = folder / name
        if name.startswith("."):
            left_out["hidden"] += 1
        elif path.is_dir():
            _walk(path, found, seen, left_out)
        elif not path.is_file():
            found.skipped += 1
            reason = "not a regular file" if path.exists() else "a link that leads nowhere"
            found.problems.append(f"{printable(path)}: {reason}")
        elif path.suffix.lower() not in SUFFIXES:
            left_out[f"unknown type {printable(path.suffix) or '(no suffix)'}"] += 1
        else:
            _take(path, found, seen)
