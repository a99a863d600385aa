"""Which chunks requests looked up, on disk: what `chunkcache hitrate` replays to advise on sizes.

Digests and lengths alone, no text: nobody can tell a question or a passage from them without the
installation's secret. Two files, the older one is removed when the newer one is full.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

FILE_NAME: Final = "lookups.jsonl"
OLDER_NAME: Final = "lookups.1.jsonl"
KIND: Final = "chunkcache.lookups"


@dataclass(frozen=True, slots=True)
class LoggedPart:
    """A run of a prompt: a passage that was looked up, or context before one."""

    id: str
    tokens: int
    is_passage: bool


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """What the records of one model take, for whoever reads the log without loading it."""

    bytes_per_token: int  # in memory
    disk_bytes_per_token: int
    page_tokens: int
    layers: int


class LookupLog:
    """Appends a line for each request. Thread-safe; several processes may write one folder.

    A log that cannot be written is given up with a warning; requests go on.

    Args:
        folder: the home folder.
        limit_bytes: of both files together.
        facts: are written at the head of every file, and once by each process.
    """

    def __init__(self, folder: Path, limit_bytes: int, facts: RecordFacts) -> None:
        self._path = folder / FILE_NAME
        self._older = folder / OLDER_NAME
        self._limit_bytes = limit_bytes // 2
        self._head = _line(
            log=KIND, bytes_per_token=facts.bytes_per_token, page_tokens=facts.page_tokens,
            layers=facts.layers, disk_bytes_per_token=facts.disk_bytes_per_token,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._file: int | None = None
        self._gave_up = False

    def note(self, parts: Sequence[LoggedPart]) -> None:
        """One request's prompt, up to its last passage; nothing where there is none."""
        passages = [index for index, part in enumerate(parts) if part.is_passage]
        if not passages:
            return
        chunks = [
            {"id": p.id, "tokens": p.tokens, **({} if p.is_passage else {"passage": False})}
            for p in parts[: passages[-1] + 1]
        ]
        with self._lock:
            if self._gave_up:
                return
            try:
                self._append(_line(at=round(time.time(), 3), chunks=chunks))
            except OSError as error:
                self._gave_up = True
                log.warning(
                    "lookup_log_given_up", path=str(self._path), reason=error.strerror,
                    effect="look-ups are not logged until the next start",
                )  # fmt: skip

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._gave_up = True
            self._let_go()

    def _append(self, line: bytes) -> None:
        if len(self._head) + len(line) > self._limit_bytes:
            return  # no file could hold it
        while True:
            file = self._open()
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if self._is_current(file):
                    if os.fstat(file).st_size + len(line) <= self._limit_bytes:
                        _write(file, line)
                        return
                    self._path.replace(self._older)
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
            self._let_go()  # renamed, here or by another process

    def _open(self) -> int:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            _write(self._file, self._head)
        return self._file

    def _is_current(self, file: int) -> bool:
        try:
            return os.fstat(file).st_ino == self._path.stat().st_ino
        except FileNotFoundError:
            return False

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write(file: int, line: bytes) -> None:
    if os.write(file, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(**fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
