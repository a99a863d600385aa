"""Traces of one prompt a line: our own form, Mooncake's and LMCache's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from chunkcache.evaluate.hitrate.json_lines import MAX_TOKENS, KnownChunks, Line, json_lines
from chunkcache.evaluate.hitrate.trace import RecordSizes, TracedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MOONCAKE_BLOCK_TOKENS: Final = 512
_MS: Final = 1e-3
_ITEM_BYTES: Final = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1,
    "uint8": 1,
}  # fmt: skip


def read_chunk_lines(path: Path) -> Iterator[TracedRequest]:
    """Lines `{"at": seconds, "chunks": [{"id", "tokens", "passage"?}]}`, in order of time.

    `passage` false marks context. A line with `log` says what the lines after it were made with.
    """
    known = KnownChunks()
    for line in json_lines(path):
        if "log" in line.fields:
            continue
        request = chunk_request(line)
        known.move_to(line, "at", request.at_s)
        for chunk, tokens in zip(request.ids, request.tokens, strict=True):
            known.check(line, chunk, tokens)
        yield request


def chunk_request(line: Line) -> TracedRequest:
    """The request in a line of our own form."""
    chunks = line.fields.get("chunks")
    if not isinstance(chunks, list):
        line.fail("chunks", chunks, 'a list of {"id", "tokens"}', "one for each part of a prompt")
    ids: list[int | str] = []
    tokens: list[int] = []
    flags: list[bool] = []
    for index, chunk in enumerate(chunks):
        _check_part(line, index, chunk)
        ids.append(chunk["id"])
        tokens.append(chunk["tokens"])
        flags.append(chunk.get("passage", True))
    return TracedRequest(line.seconds("at"), ids, tokens, None if all(flags) else flags)


def _check_part(line: Line, index: int, part: Any) -> None:
    where = f"chunks[{index}]"
    if not isinstance(part, dict):
        line.fail(where, part, 'an object {"id", "tokens"}', "sizes are in tokens")
    if type(part.get("id")) not in (int, str):
        line.fail(f"{where}.id", part.get("id"), "a whole number or a text", "one id, one content")
    size = part.get("tokens")
    if type(size) is not int or not 1 <= size <= MAX_TOKENS:
        line.fail(
            f"{where}.tokens", size, f"a whole number from 1 to {MAX_TOKENS}",
            "leave parts without tokens out",
        )  # fmt: skip
    if type(part.get("passage", True)) is not bool:
        line.fail(
            f"{where}.passage", part["passage"], "true or false", "false: it is never looked up"
        )


def sizes_of_log(path: Path) -> RecordSizes | None:
    """What a log says of its model in its first line; None for a trace that says nothing."""
    line = next(iter(json_lines(path)), None)
    return log_sizes(line) if line is not None and "log" in line.fields else None


def log_sizes(line: Line) -> RecordSizes:
    """The sizes in the line that begins a log."""
    return RecordSizes(
        bytes_per_token=line.integer("bytes_per_token", least=1),
        page_tokens=line.integer("page_tokens", least=1),
        layers=line.integer("layers", least=1),
        disk_bytes_per_token=line.integer("disk_bytes_per_token", least=1),
    )


def read_mooncake(path: Path) -> Iterator[TracedRequest]:
    """Blocks of 512 tokens, the last one shorter; an id names a block and all before it."""
    known = KnownChunks()
    for line in json_lines(path):
        at_s = line.seconds("timestamp", per_unit=_MS)
        known.move_to(line, "timestamp", at_s)
        ids = line.ids("hash_ids")
        length = line.integer("input_length", least=0)
        most = len(ids) * _MOONCAKE_BLOCK_TOKENS
        if not most - _MOONCAKE_BLOCK_TOKENS < length <= most and (length or ids):
            line.fail(
                "input_length", length, f"that of {len(ids)} blocks of {_MOONCAKE_BLOCK_TOKENS}",
                "hash_ids has one id for each block that was begun",
            )  # fmt: skip
        tokens = [_MOONCAKE_BLOCK_TOKENS] * len(ids)
        if ids:
            tokens[-1] = length - most + _MOONCAKE_BLOCK_TOKENS
        sizes = [known.first_size(c, size) for c, size in zip(ids, tokens, strict=True)]
        yield TracedRequest(at_s, ids, sizes)


def read_lmcache(path: Path) -> Iterator[TracedRequest]:
    """Whole chunks of `chunk_size` tokens; what is left of a prompt is never in its cache."""
    known = KnownChunks()
    for line in json_lines(path):
        at_s = line.seconds("timestamp")
        known.move_to(line, "timestamp", at_s)
        ids = line.ids("chunk_hashes")
        size = line.integer("chunk_size", least=1)
        rest = line.integer("seq_len", least=0) - size * len(ids)
        if rest < 0:
            line.fail(
                "seq_len", line.fields["seq_len"], f"at least {size * len(ids)}",
                "chunk_hashes are of whole chunks",
            )  # fmt: skip
        for chunk in ids:
            known.check(line, chunk, size)
        flags = [True] * len(ids)
        if rest:
            ids, flags = [*ids, f"rest of line {line.number}"], [*flags, False]
        yield TracedRequest(
            at_s, ids, [size] * (len(flags) - bool(rest)) + [rest] * bool(rest), flags
        )


def sizes_of_lmcache(path: Path) -> RecordSizes | None:
    """From the shapes of the first line; None where it has none, or a type we do not know."""
    line = next(iter(json_lines(path)), None)
    if line is None:
        return None
    shapes, dtypes = line.fields.get("shapes") or [], line.fields.get("dtypes") or []
    try:
        total = sum(
            math.prod(shape) * _ITEM_BYTES[dtype]
            for shape, dtype in zip(shapes, dtypes, strict=True)
        )
    except (KeyError, TypeError, ValueError):
        return None
    per_token = total // line.integer("chunk_size", least=1)
    return RecordSizes(per_token) if per_token else None
