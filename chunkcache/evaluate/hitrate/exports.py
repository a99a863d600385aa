"""Traces for other simulators, and in our own form. libCacheSim's is in `oracle_general.py`."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from chunkcache.durable import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace, TracedRequest


def write_chunk_lines(trace: Trace, path: Path) -> int:
    """One line for each request, as `read_chunk_lines` reads it. Returns: requests written."""
    return _write(trace, path, _chunk_line)


def write_lmcache(trace: Trace, path: Path, sizes: RecordSizes, *, chunk_tokens: int = 256) -> int:
    """What LMCache's server would have logged of its look-ups; its cache simulator reads that.

    It cuts every prompt, context and all, into chunks of `chunk_tokens` and names each by all
    before it. Given `trace.by_access()` and small chunks it is a cache of passages by themselves.

    Returns:
        Requests written.
    """

    def line(request: TracedRequest) -> dict[str, Any]:
        return {
            "timestamp": request.at_s,
            "model_name": "trace",
            "chunk_size": chunk_tokens,
            "seq_len": sum(request.tokens),
            "dtypes": ["int8"],  # uint8 is none of those that its simulator knows
            "shapes": [[chunk_tokens, sizes.bytes_per_token]],
            "chunk_hashes": list(_prefix_hashes(request, chunk_tokens)),
        }

    return _write(trace, path, line)


def _prefix_hashes(request: TracedRequest, chunk_tokens: int) -> Iterator[str]:
    """A name for each whole chunk of the prompt: of what it holds and of the one before it."""
    digest, room = b"", chunk_tokens
    hasher = hashlib.blake2b(digest, digest_size=8)
    for part, tokens in zip(request.ids, request.tokens, strict=True):
        at = 0
        while at < tokens:
            taken = min(room, tokens - at)
            hasher.update(f"{part!r}:{at}:{taken};".encode())
            at, room = at + taken, room - taken
            if not room:
                digest, room = hasher.digest(), chunk_tokens
                yield f"0x{digest.hex()}"
                hasher = hashlib.blake2b(digest, digest_size=8)


def _chunk_line(request: TracedRequest) -> dict[str, Any]:
    flags = request.is_passage or [True] * len(request.ids)
    parts = zip(request.ids, request.tokens, flags, strict=True)
    return {
        "at": request.at_s,
        "chunks": [
            {"id": chunk, "tokens": tokens, **({} if is_passage else {"passage": False})}
            for chunk, tokens, is_passage in parts
        ],
    }


def _write(trace: Trace, path: Path, line: Callable[[TracedRequest], dict[str, Any]]) -> int:
    count = 0
    with whole_file(path) as file:
        for request in trace:
            file.write(json.dumps(line(request)).encode() + b"\n")
            count += 1
    return count
