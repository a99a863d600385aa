"""Documents that come in chunks: JSON lines `{"text": …, "title"?, "url"?, "id"?}`.

Each line is one chunk and is taken as it is; other fields are ignored, as corpora have many.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from chunkcache.errors import InvalidRequest

_GIVEN_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")


@dataclass(frozen=True, slots=True)
class GivenChunk:
    """One line. `id` is empty when the line has none."""

    text: str
    title: str
    url: str
    id: str
    line: int  # from 1, for messages


def parse_chunk_lines(text: str) -> tuple[tuple[GivenChunk, ...], tuple[str, ...]]:
    """The chunks of a file, in order, and what is wrong with the other lines, naming each.

    Blank lines are skipped. A wrong line does not take the others with it.
    """
    chunks, problems = [], []
    first_line: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            chunk = _parse_line(line, number)
            if chunk.id and (earlier := first_line.setdefault(chunk.id, number)) != number:
                raise _refused(number, f"has the id {chunk.id!r} of line {earlier}")
            chunks.append(chunk)
        except InvalidRequest as error:
            problems.append(error.message)
    return tuple(chunks), tuple(problems)


def _parse_line(line: str, number: int) -> GivenChunk:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _refused(number, f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _refused(number, 'is not a JSON object such as {"text": "..."}')
    values = {}
    for name in ("text", "title", "url", "id"):
        value = fields.get(name, "")
        if name == "id" and type(value) is int:
            value = str(value)
        if value is None and name != "text":
            value = ""
        if not isinstance(value, str):
            raise _refused(number, f"has a {name} that is not a string")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise _refused(number, f"has a {name} with half a surrogate pair")
        values[name] = value if name == "text" else " ".join(value.split())
    if not values["text"].strip():
        raise _refused(number, "has no text")
    if values["id"] and not _GIVEN_ID.fullmatch(values["id"]):
        raise _refused(number, "has an id that is not 1 to 128 of A-Z a-z 0-9 . _ ~ -")
    return GivenChunk(**values, line=number)


def _refused(number: int, what: str) -> InvalidRequest:
    return InvalidRequest(f"line {number} {what}", param="file")
