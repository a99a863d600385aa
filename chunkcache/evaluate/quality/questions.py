"""Question sets: JSON lines, plain or gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chunkcache.errors import InvalidRequest
from chunkcache.protocol import GivenDocument

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Question:
    """One question. Without contexts the passages are retrieved from the catalog."""

    id: str
    text: str
    answers: tuple[str, ...] = ()  # gold, alternatives; may be empty
    contexts: tuple[GivenDocument, ...] | None = None
    supporting: frozenset[str] = frozenset()  # ids of the contexts known to hold the answer


def read_questions(path: Path, *, limit: int | None = None, skip: int = 0) -> list[Question]:
    """Questions from lines `{"question", "answers"?, "contexts"?: [{"title"?, "text"}], "id"?}`.

    A context may say whether it is `supporting`. Contexts are named by their place. Other fields
    are left alone: question sets carry their own.

    Raises:
        InvalidRequest: the file cannot be read, or a line is not of that form; names the line.
    """
    found: list[Question] = []
    try:
        for number, line in enumerate(_lines(path), start=1):
            if limit is not None and len(found) >= limit:
                break
            if number > skip and line.strip():
                found.append(_question(line, number, path))
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InvalidRequest(
            f"questions: cannot read {path}: {error}", param="questions"
        ) from error
    if not found:
        raise InvalidRequest(
            f"questions: {path} has none after line {skip}. Hint: one JSON object a line.",
            param="questions",
        )
    return found


def _lines(path: Path) -> Iterator[str]:
    # at \n alone: to JSON a carriage return is a blank like any other
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            yield from file
    else:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file


def _question(line: str, number: int, path: Path) -> Question:
    def wrong(field: str, got: object, want: str) -> InvalidRequest:
        return InvalidRequest.of(f"{path.name} line {number}: {field}", got, want, "see --help")

    try:
        item: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number may have more digits than Python reads
        reason = getattr(error, "msg", str(error))
        raise wrong("line", line[:40], f"JSON ({reason})") from error
    if not isinstance(item, dict) or not isinstance(item.get("question"), str):
        raise wrong(
            "question", item if not isinstance(item, dict) else item.get("question"), "text"
        )
    answers = item.get("answers", [])
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise wrong("answers", answers, "a list of texts")
    contexts, supporting = None, frozenset[str]()
    if item.get("contexts") is not None:
        try:
            contexts = tuple(
                GivenDocument(id=str(i), title=c.get("title") or "", text=c["text"])
                for i, c in enumerate(item["contexts"])
            )
            supporting = frozenset(
                str(i) for i, c in enumerate(item["contexts"]) if c.get("supporting")
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise wrong("contexts", item["contexts"], 'a list of {"title", "text"}') from error
    name = str(item.get("id", number))
    return Question(name, item["question"], tuple(answers), contexts, supporting)
