"""JSON lines, plain or gzipped, checked field by field; every fault names its line."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from chunkcache.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Line:
    """One object of a file of JSON lines."""

    file: str
    number: int
    fields: dict[str, Any]

    def fail(self, field: str, value: object, limit: str, hint: str) -> NoReturn:
        """Raises `InvalidRequest` with the file, the line and the field."""
        raise InvalidRequest.of(f"{self.file} line {self.number}: {field}", value, limit, hint)

    def integer(self, field: str, *, least: int = 0, most: int = MAX_TOKENS) -> int:
        """A whole number within limits."""
        value = self.fields.get(field)
        if type(value) is not int or not least <= value <= most:
            self.fail(field, value, f"a whole number from {least} to {most}", "see docs")
        return value

    def seconds(self, field: str, *, per_unit: float = 1.0) -> float:
        """A time that is not negative, in seconds; digits in quotes are a number too."""
        value = self.fields.get(field)
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0.0 <= number < math.inf:
            self.fail(field, value, "a time, 0 or later", "times count from any beginning")
        return number * per_unit

    def ids(self, field: str, value: Any = None) -> list[int | str]:
        """A list of chunk ids: whole numbers or texts."""
        value = self.fields.get(field) if value is None else value
        if not isinstance(value, list) or not all(type(item) in (int, str) for item in value):
            self.fail(field, value, "a list of ids, whole numbers or texts", "see docs")
        return value


def json_lines(path: Path, skip: Callable[[InvalidRequest], None] | None = None) -> Iterator[Line]:
    """The objects of a file in order; empty lines are passed over.

    Args:
        skip: told of a line that holds no JSON object, which is left out then.

    Raises:
        InvalidRequest: the file cannot be read, or a line holds no JSON object.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    line = _line(path.name, number, text)
                except InvalidRequest as error:
                    if skip is None:
                        raise
                    skip(error)
                else:
                    yield line
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InvalidRequest(
            f"{path.name} line {number + 1}: cannot be read: {error}", param="trace"
        ) from error


def _opened(path: Path) -> Any:
    # at \n alone: to JSON a carriage return is a blank like any other
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _line(file: str, number: int, text: str) -> Line:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number may have more digits than Python reads
        reason = getattr(error, "msg", str(error))
        Line(file, number, {}).fail("line", text[:40], f"JSON ({reason})", "one object a line")
    if not isinstance(fields, dict):
        Line(file, number, {}).fail("line", fields, "a JSON object", "one object a line")
    return Line(file, number, fields)


class KnownChunks:
    """What was read so far: every chunk keeps its size, and time does not run backwards."""

    def __init__(self) -> None:
        self._tokens: dict[int | str, int] = {}
        self._last_s = 0.0

    def check(self, line: Line, chunk: int | str, tokens: int) -> None:
        """Raises `InvalidRequest`: the chunk had another size in an earlier line."""
        known = self._tokens.setdefault(chunk, tokens)
        if known != tokens:
            line.fail(
                f"tokens of {chunk!r}", tokens, f"{known}, as in an earlier line",
                "a chunk is its content: another size is another id",
            )  # fmt: skip

    def first_size(self, chunk: int | str, tokens: int) -> int:
        """The size a chunk had when it was first read."""
        return self._tokens.setdefault(chunk, tokens)

    def move_to(self, line: Line, field: str, at_s: float) -> None:
        """Raises `InvalidRequest`: an earlier line is of a later time."""
        if at_s < self._last_s:
            line.fail(
                field, line.fields.get(field),
                f"at least that of the line before ({self._last_s:g} s)",
                "sort the requests by time",
            )  # fmt: skip
        self._last_s = at_s
