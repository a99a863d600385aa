"""The file an evaluation leaves: first what it was made with, then a JSON line per question.

A run may be stopped, even killed, and resumed; it is resumed only if everything its results depend
on is the same. Lines end at `\\n` and nowhere else: answers may hold U+2028 and its like.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import structlog

from chunkcache.errors import InvalidRequest, StoreError
from chunkcache.evaluate.quality.facts import differences, mark_of, question_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO
    from pathlib import Path
    from types import TracebackType

    from chunkcache.evaluate.quality.facts import Facts
    from chunkcache.evaluate.quality.questions import Question

log = structlog.get_logger(__name__)

Line = dict[str, Any]

_THIS_EVALUATION = "empty, or of this very evaluation"


class ResultsFile:
    """Open for one run, which alone may write to it; a context manager.

    Args:
        path: made where it is missing, its folder too.
        facts: all that the results depend on but the questions.

    Raises:
        InvalidRequest: it cannot be written, another run is writing to it, or it holds something
            else than lines made under these facts; says what differs.
    """

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path = path
        self._mark = mark_of(facts)
        self._file = _locked(path)
        try:
            self._lines = self._read(facts)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def known(self, questions: Sequence[Question]) -> dict[str, Line]:
        """The lines of those questions that were answered before, by question id.

        Raises:
            InvalidRequest: two questions share an id, a question is not what it was, or lines of
                `questions` would be added to those of others.
        """
        asked = {question.id: question for question in questions}
        if len(asked) < len(questions):
            ((twice, _),) = Counter(question.id for question in questions).most_common(1)
            raise InvalidRequest.of(
                "questions",
                twice,
                "the id of one question alone",
                "give the others ids of their own",
            )
        for name, line in self._lines.items():
            if name in asked and line["asked"] != question_digest(asked[name]):
                raise self._refused(f"{_changed(line, asked[name])} of question {name!r} changed")
        others = [name for name in self._lines if name not in asked]
        if others and asked.keys() - self._lines.keys():
            raise self._refused(f"this one has other questions, {others[0]!r} among them")
        return {name: line for name, line in self._lines.items() if name in asked}

    def append(self, question: Question, found: Line) -> Line:
        """Write the line of a question; returns it."""
        line = {"evaluation": self._mark, "asked": question_digest(question), **found}
        self._write(line)
        return line

    def _read(self, facts: Facts) -> dict[str, Line]:
        self._file.seek(0)
        text = self._file.read()
        whole = _whole(text)
        lines = self._checked(_parsed(whole, self.path), facts)
        if half := text[len(whole) :]:
            self._drop(half, at=len(whole))
        if not whole:
            self._write({"evaluation": self._mark, "facts": facts})
        return lines

    def _checked(self, lines: Sequence[Line], facts: Facts) -> dict[str, Line]:
        """The questions' lines by id, if the first line says that they were made under `facts`."""
        if not lines:
            return {}
        before = lines[0].get("facts")
        if not isinstance(before, dict):
            raise self._refused("this one does not say what it was made with")
        if lines[0].get("evaluation") != self._mark:
            raise self._refused(differences(before, facts))
        known: dict[str, Line] = {}
        for line in lines[1:]:
            if line.get("evaluation") != self._mark or "asked" not in line:
                raise self._refused("this one holds lines of several evaluations")
            if line["id"] in known:
                raise self._refused(f"this one holds question {line['id']!r} twice")
            known[line["id"]] = line
        return known

    def _drop(self, half: bytes, at: int) -> None:
        """Cut off the last line, if it is the beginning of one of ours."""
        start = f'{{"evaluation": "{self._mark}"'.encode()
        if half[: len(start)] != start[: len(half)]:
            raise self._refused("this one ends in half a line of something else")
        self._file.truncate(at)
        log.warning(
            "evaluation_line_dropped", path=str(self.path), size_bytes=len(half),
            reason="a run ended while it wrote it", effect="its question is asked again",
        )  # fmt: skip

    def _write(self, line: Line) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise StoreError(
                f"out: cannot write {self.path}: {error.strerror}. Hint: make room and run it "
                "again; what is in it is not asked again"
            ) from error

    def _refused(self, why: str) -> InvalidRequest:
        return InvalidRequest.of(
            "out", str(self.path), _THIS_EVALUATION, f"name another file: {why}"
        )


def read_lines(path: Path) -> list[Line]:
    """The questions' lines in the file of an evaluation, without one that is half written.

    Raises:
        InvalidRequest: there are lines of something else.
    """
    return [line for line in _parsed(_whole(path.read_bytes()), path) if "facts" not in line]


def _locked(path: Path) -> FileIO:
    """The file, open for reading and appending, and ours until it is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)  # else closing it tries again what has failed
    except OSError as error:
        raise InvalidRequest.of(
            "out", str(path), "a file that can be written", f"{error.strerror}; name another file"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if not isinstance(error, BlockingIOError):
            raise
        raise InvalidRequest.of(
            "out", str(path), "a file that no other run is writing to",
            "wait for that run to end, or name another file",
        ) from error  # fmt: skip
    return file


def _whole(text: bytes) -> bytes:
    """Without what follows the last line's end: a run was killed while it wrote that."""
    return text[: text.rfind(b"\n") + 1]


def _parsed(text: bytes, path: Path) -> list[Line]:
    lines = []
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        try:
            found = json.loads(line)
        except ValueError as error:  # of JSON and of UTF-8
            raise _no_line(path, number, str(error)) from error
        if not isinstance(found, dict):
            raise _no_line(path, number, "it is no JSON object")
        lines.append(found)
    return lines


def _no_line(path: Path, number: int, why: str) -> InvalidRequest:
    return InvalidRequest.of(
        "out", f"{path} line {number}", "a line of an evaluation", f"{why}; another file?"
    )


def _changed(line: Line, question: Question) -> str:
    """What a question has no longer in common with its line, in words."""
    if line["question"] != question.text:
        return "the words"
    return "the gold answers" if line["gold"] != list(question.answers) else "the passages"
