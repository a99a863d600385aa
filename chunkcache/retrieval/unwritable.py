"""A catalog file that this process may read and not write.

SQLite reads such a file beside its writer, through the files that the writer made. Where nobody is
at work there are none and none can be made, so the file is read as one that does not change, and
whether it has is looked at after each read.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

from chunkcache.errors import StoreError
from chunkcache.read_only import WHAT_TO_DO, can_be_written

if TYPE_CHECKING:
    from pathlib import Path

    State = tuple[tuple[int, int, int] | None, ...]


class UnwritableFile:
    """Connections that only read. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._at_rest: State | None = None  # how it was when it was first taken not to change

    @classmethod
    def at(cls, path: Path) -> UnwritableFile | None:
        """None: it can be written, or is not there."""
        if not path.exists() or (can_be_written(path) and can_be_written(path.parent)):
            return None
        return cls(path)

    def connect(self, timeout_s: float) -> sqlite3.Connection:
        """A connection that has read something.

        Raises:
            StoreError: it has changes that only a writer can take over.
            sqlite3.Error: it is no database, or cannot be read.
        """
        try:
            return self._opened("mode=ro", timeout_s)
        except sqlite3.OperationalError as error:
            if self._log.exists() and self._log.stat().st_size:
                raise StoreError(
                    f"catalog: {self._path} cannot be written here, and {self._log.name} holds "
                    f"changes that are not in it yet: {error}. Hint: run chunkcache ls once as a "
                    "user who may write there"
                ) from error
        if self._at_rest is None:
            self._at_rest = self._state()
        return self._opened("immutable=1", timeout_s)

    def _opened(self, how: str, timeout_s: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self._path.absolute()))}?{how}", uri=True, timeout=timeout_s,
            isolation_level=None, check_same_thread=False,
        )  # fmt: skip
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self) -> None:
        """Nothing, if what was read just now is of one moment. Raises StoreError."""
        if self._at_rest is not None and self._state() != self._at_rest:
            raise StoreError(f"catalog: {self._path} was written while it was read. Hint: again")

    def refuse(self) -> StoreError:
        """What is said to who would write."""
        return StoreError(f"catalog: {self._path} cannot be written here. Hint: {WHAT_TO_DO}")

    def _state(self) -> State:
        found: list[tuple[int, int, int] | None] = []
        for path in (self._path, self._log):
            try:
                stat = path.stat()
            except FileNotFoundError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)
