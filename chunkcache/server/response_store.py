"""Answers of `/v1/responses` that can be read again and gone on from, on disk for a while.

A SQLite file of its own: what it holds is forgotten after a day, and its loss costs nobody a
document. Every call opens it anew, so any thread and any server of the same home may call.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from chunkcache.errors import NotFound, StoreError
from chunkcache.protocol import Message
from chunkcache.row_checksum import row_checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from chunkcache.protocol import Json

log = structlog.get_logger(__name__)

_OVERHEAD_BYTES = 1024  # of what is kept, beside its text
_BUSY_TIMEOUT_S = 10.0
_VERSION = 3  # of the table and of what is in it; another one's is dropped
_TABLE = """CREATE TABLE responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    kept_at REAL NOT NULL,        -- seconds since the epoch
    size_bytes INTEGER NOT NULL,
    body BLOB NOT NULL,
    input_items BLOB NOT NULL,
    turns BLOB NOT NULL,          -- JSON
    checksum BLOB NOT NULL,       -- of these three: SQLite notices damage to its own pages at most
    UNIQUE (tenant, id)
)"""


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A response, what was asked, and the conversation up to and with its answer."""

    body: bytes
    input_items: bytes
    turns: tuple[Message, ...]


class ResponseStore:
    """Keeps responses by tenant and id. Thread-safe; several processes may share the file.

    Where there is too little room, the tenant that takes most of it loses its oldest response, so
    that nobody's conversations are pushed out by somebody else's.

    Args:
        path: the file; made when the first response is kept.
        capacity_bytes: of all tenants together; 0: nothing is kept.
        ttl_s: how long a response is kept.
        clock: seconds since the epoch.
    """

    def __init__(
        self, path: Path, capacity_bytes: int, ttl_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._capacity_bytes = capacity_bytes
        self._ttl_s = ttl_s
        self._clock = clock

    def keep(
        self,
        tenant: str,
        response: Json,
        input_items: Sequence[Json],
        turns: Sequence[Message],
    ) -> None:
        """Keep a response. One that is larger than all the room there is is not kept.

        Nor is one that cannot be written: that is logged, for the answer itself has been made.
        """
        said = (response, list(input_items), [turn.model_dump() for turn in turns])
        kept = [json.dumps(part).encode() for part in said]
        size_bytes = sum(map(len, kept)) + _OVERHEAD_BYTES
        if size_bytes > self._capacity_bytes:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._writing() as connection:
                self._make_room(connection, size_bytes)
                connection.execute(
                    "INSERT INTO responses (tenant, id, kept_at, size_bytes, body, input_items, "
                    "turns, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (tenant, response["id"], self._clock(), size_bytes, *kept, row_checksum(kept)),
                )
        except (OSError, StoreError) as error:
            log.warning("response_not_kept", path=str(self._path), reason=str(error))

    def get(self, tenant: str, response_id: str) -> KeptResponse:
        """A response of this tenant's.

        Raises:
            NotFound: there is none, or no longer.
            StoreError: the file cannot be read, or it is not what was kept.
        """
        found = None
        if self._path.exists():
            with self._opened() as connection:
                found = connection.execute(
                    "SELECT body, input_items, turns, checksum FROM responses "
                    "WHERE tenant = ? AND id = ? AND kept_at >= ?",
                    (tenant, response_id, self._oldest()),
                ).fetchone()
        if found is None:
            raise NotFound(
                f"Response with id '{response_id[:80]}' not found. Hint: responses are kept for "
                f"{self._ttl_s:g} s, within server.responses_bytes, unless store is false.",
                param="response_id",
            )
        body, input_items, turns, checksum = found
        if row_checksum((body, input_items, turns)) != checksum:
            raise StoreError(
                f"{self._path}: response {response_id} is damaged. Hint: look at the disk; the "
                "file may be deleted, it only holds responses of the last server.responses_ttl_s"
            )
        return KeptResponse(
            body, input_items, tuple(Message.model_validate(turn) for turn in json.loads(turns))
        )

    def delete(self, tenant: str, response_id: str) -> None:
        """Forget a response; those that went on from it stay. Raises NotFound, StoreError."""
        self.get(tenant, response_id)
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM responses WHERE tenant = ? AND id = ?", (tenant, response_id)
            )

    def _oldest(self) -> float:
        return self._clock() - self._ttl_s

    def _make_room(self, connection: sqlite3.Connection, size_bytes: int) -> None:
        connection.execute("DELETE FROM responses WHERE kept_at < ?", (self._oldest(),))
        # the clock was set back: what is of the future would outlive its time
        connection.execute("UPDATE responses SET kept_at = ?1 WHERE kept_at > ?1", (self._clock(),))
        sizes = dict(
            connection.execute("SELECT tenant, sum(size_bytes) FROM responses GROUP BY tenant")
        )
        while sizes and sum(sizes.values()) + size_bytes > self._capacity_bytes:
            largest = max(sizes, key=sizes.__getitem__)
            number, freed = connection.execute(
                "SELECT number, size_bytes FROM responses WHERE tenant = ? ORDER BY number LIMIT 1",
                (largest,),
            ).fetchone()
            connection.execute("DELETE FROM responses WHERE number = ?", (number,))
            sizes[largest] -= freed
            if not sizes[largest]:
                del sizes[largest]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path}: {error}. Hint: check free space and permissions; a damaged file "
                "may be deleted, it only holds responses of the last server.responses_ttl_s"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
            if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")  # of two processes, one makes the table
        if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            connection.execute("DROP TABLE IF EXISTS responses")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
