"""Traces as NumPy arrays, one row for each access."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.trace import TracedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COLUMNS: Final = ("obj", "size_tok", "req", "ts")
PASSAGE_KIND: Final = 1
"""In `kind`, where an archive has several kinds; with one kind alone, all rows are passages."""


def read_columns(path: Path) -> Iterator[TracedRequest]:
    """An archive (`.npz`) of `obj` (id), `size_tok`, `req` (number of the request, rising), `ts`
    (seconds, rising) and perhaps `kind`. The arrays are held in memory.

    Raises:
        InvalidRequest: a column is missing, of another length or type, or not in order.
    """
    columns = _load(path)
    obj, size, request, ts = (columns[name] for name in _COLUMNS)
    kinds = columns.get("kind")
    flags = None if kinds is None or len(np.unique(kinds)) == 1 else kinds == PASSAGE_KIND
    starts: list[int] = np.flatnonzero(np.diff(request, prepend=request[:1] - 1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(request)], strict=True):
        yield TracedRequest(
            float(ts[start]), obj[start:end].tolist(), size[start:end].tolist(),
            None if flags is None else flags[start:end].tolist(),
        )  # fmt: skip


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        # opened here: NumPy leaves a file open that is no archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            columns = {n: archive[n] for n in (*_COLUMNS, "kind") if n in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"{path.name}: cannot be read: {error}", param="trace") from error
    for name in _COLUMNS:
        if name not in columns:
            raise _wrong(path, name, "missing", f"there, beside {', '.join(columns) or 'nothing'}")
    rows = len(columns["obj"])
    for name, column in columns.items():
        if column.shape != (rows,) or column.dtype.kind not in "iu":
            got = f"{column.dtype} {column.shape}"
            raise _wrong(path, name, got, f"whole numbers, ({rows},) as obj has")
    _check_rows(path, "size_tok", columns["size_tok"] >= 1, columns["size_tok"], "at least 1")
    for name in ("req", "ts"):
        column = columns[name]
        rising = np.ones(rows, dtype=bool)
        rising[1:] = column[1:] >= column[:-1]  # a difference of unsigned numbers is never below 0
        _check_rows(path, name, rising, column, "at least that of the row before")
    _check_rows(path, "ts", columns["ts"] >= 0, columns["ts"], "0 or later")
    return columns


def _check_rows(path: Path, name: str, good: Any, column: np.ndarray, limit: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise _wrong(path, f"row {row}: {name}", int(column[row]), limit)


def _wrong(path: Path, field: str, got: object, limit: str) -> InvalidRequest:
    return InvalidRequest.of(f"{path.name} {field}", got, limit, "one row for each access, by time")
