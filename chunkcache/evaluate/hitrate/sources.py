"""Traces from files: which format a file is in, and how each is read.

- `chunks`: lines `{"at", "chunks": [{"id", "tokens", "passage"?}]}`; the service's own log
- `ragpulse`: RAGPulse's `0_trace.jsonl` and, beside it, the lengths (arXiv 2511.12979)
- `mooncake`: lines `{"timestamp", "input_length", "hash_ids"}`, blocks of 512 tokens
- `lmcache`: lines that LMCache's server logs of its look-ups
- `columns`: NumPy arrays `obj`, `size_tok`, `req`, `ts`, `kind`, one row for each access
- `oracle`: libCacheSim's oracleGeneral, records of 24 bytes
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.columns import read_columns
from chunkcache.evaluate.hitrate.json_lines import json_lines
from chunkcache.evaluate.hitrate.oracle_general import read_oracle_general
from chunkcache.evaluate.hitrate.prompts import (
    read_chunk_lines,
    read_lmcache,
    read_mooncake,
    sizes_of_lmcache,
    sizes_of_log,
)
from chunkcache.evaluate.hitrate.ragpulse import TRACE_FILE, read_ragpulse
from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chunkcache.evaluate.hitrate.trace import TracedRequest

FORMS: Final = ("chunks", "ragpulse", "mooncake", "lmcache", "columns", "oracle")


def read_trace(path: Path, form: str | None = None, *, bytes_per_token: int = 1) -> Trace:
    """The trace in a file or folder, to be read as it is iterated over.

    Args:
        form: what it is in, one of `FORMS`; None: told by its name and first line.
        bytes_per_token: what sizes of `oracle` are divided by, which has bytes alone.

    Raises:
        InvalidRequest: there is no such file, or nobody can tell what it is.
    """
    try:
        problem = None if path.exists() else "no such file"
    except OSError as error:  # a name too long, a folder that may not be entered
        problem = str(error.strerror)
    if problem is not None:
        raise InvalidRequest.of("trace", str(path), "a file or folder", problem)
    form = form or _form_of(path)
    readers: dict[str, Callable[[Path], Iterator[TracedRequest]]] = {
        "chunks": read_chunk_lines,
        "ragpulse": read_ragpulse,
        "mooncake": read_mooncake,
        "lmcache": read_lmcache,
        "columns": read_columns,
        "oracle": partial(read_oracle_general, bytes_per_token=bytes_per_token),
    }
    read = partial(readers[form], path)
    sizes: RecordSizes | None = None
    if form == "chunks":
        sizes = sizes_of_log(path)
    elif form == "lmcache":
        sizes = sizes_of_lmcache(path)
    elif form == "oracle":
        sizes = RecordSizes(bytes_per_token)
    return Trace(path.name, _never_empty(read, path), sizes)


def _never_empty(
    read: Callable[[], Iterator[TracedRequest]], path: Path
) -> Callable[[], Iterator[TracedRequest]]:
    def requests() -> Iterator[TracedRequest]:
        empty = True
        for request in read():
            empty = False
            yield request
        if empty:
            raise InvalidRequest.of("trace", path.name, "of one request at least", "it is empty")

    return requests


def _form_of(path: Path) -> str:
    if path.is_dir() or path.name == TRACE_FILE:
        return "ragpulse"
    if path.suffix == ".npz":
        return "columns"
    if "oracleGeneral" in path.name:
        return "oracle"
    first = next(iter(json_lines(path)), None)
    fields = first.fields if first is not None else {}
    if "chunks" in fields or "log" in fields:
        return "chunks"
    if "chunk_hashes" in fields:
        return "lmcache"
    if "hash_ids" in fields:
        return "mooncake" if isinstance(fields["hash_ids"], list) else "ragpulse"
    raise InvalidRequest.of(
        "trace", path.name, f"in one of the forms {', '.join(FORMS)}", "name it with --form"
    )
