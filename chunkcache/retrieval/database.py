"""The catalog's SQLite file: schema, opening, connections, transactions, and their failures.

Write-ahead logging: readers never wait for the writer, and a process killed at any moment leaves
every transaction whole or absent. `synchronous=FULL`, so that what was acknowledged survives a
power failure too; an fsync per document is small beside embedding it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chunkcache.errors import ShuttingDown, StoreError
from chunkcache.retrieval.unwritable import UnwritableFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_APPLICATION_ID = 0x43434154  # "CCAT"
_BUSY_TIMEOUT_S = 30.0
_IDLE_CONNECTIONS = 8

# `entry` is the int64 by which indexes know a chunk. Entries are drawn at random (`catalog_sql.py`)
# and chunks never change, so an entry in an index file can only ever mean this one chunk.
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE collections (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at REAL NOT NULL,
    generation INTEGER NOT NULL DEFAULT 0,  -- grows with every change of what can be found
    index_folder TEXT,                      -- where an index was saved, to be deleted with it
    UNIQUE (tenant, id)
);
CREATE TABLE documents (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL REFERENCES collections (key) ON DELETE CASCADE,
    document_id TEXT NOT NULL,
    title TEXT NOT NULL,
    url TEXT NOT NULL,
    sha256 TEXT NOT NULL,                   -- of the raw bytes
    size_bytes INTEGER NOT NULL,
    kind TEXT NOT NULL,                     -- plain, markdown or chunks: how it is split
    text TEXT NOT NULL,                     -- as extracted; split again when the splitter changes
    attributes TEXT NOT NULL,               -- JSON
    splitter TEXT NOT NULL,                 -- fingerprint of what made its chunks
    num_chunks INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL,
    added_at REAL NOT NULL,
    UNIQUE (collection, document_id)
);
CREATE TABLE chunks (
    entry INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents (key) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    chunk_id TEXT NOT NULL,
    title TEXT NOT NULL,
    url TEXT NOT NULL,
    start_char INTEGER NOT NULL,
    end_char INTEGER NOT NULL,
    text TEXT NOT NULL,
    token_ids BLOB NOT NULL,                -- little-endian uint32
    UNIQUE (document, ordinal)
);
CREATE INDEX chunks_by_id ON chunks (chunk_id);
CREATE TABLE vectors (
    entry INTEGER PRIMARY KEY REFERENCES chunks (entry) ON DELETE CASCADE,
    embedder TEXT NOT NULL,                 -- fingerprint
    vector BLOB NOT NULL                    -- little-endian float32
);
"""

# What each later version added, oldest first. A new catalog goes through all of them too, so that
# an old one and a new one are the same. Chunks that an earlier splitter made are made again from
# the stored text by `refresh`.
_UPGRADES: tuple[tuple[str, ...], ...] = (
    (
        "ALTER TABLE collections ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}'",  # JSON
        "ALTER TABLE collections ADD COLUMN expires_after_days INTEGER",
        "ALTER TABLE collections ADD COLUMN last_active_at REAL",
    ),
    (
        # version of what made the text; '' before there was any
        "ALTER TABLE documents ADD COLUMN reader TEXT NOT NULL DEFAULT ''",
        # JSON, outermost first
        "ALTER TABLE chunks ADD COLUMN headings TEXT NOT NULL DEFAULT '[]'",
        # of a table or code block that the chunk continues
        "ALTER TABLE chunks ADD COLUMN opening TEXT NOT NULL DEFAULT ''",
    ),
    (
        # of the file or the upload
        "ALTER TABLE documents ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        # of a file: resolved, in the file system's bytes
        "ALTER TABLE documents ADD COLUMN path BLOB",
        # JSON: parts that were left out when it was read, and why
        "ALTER TABLE documents ADD COLUMN problems TEXT NOT NULL DEFAULT '[]'",
        "CREATE INDEX documents_by_path ON documents (collection, path)",
        "CREATE INDEX documents_by_content ON documents (collection, sha256)",
        # texts of chunks that an update replaced, by `passage_digest`, for links that show them
        """CREATE TABLE former_passages (
            document INTEGER NOT NULL REFERENCES documents (key) ON DELETE CASCADE,
            digest TEXT NOT NULL,
            text TEXT NOT NULL,
            replaced_at REAL NOT NULL,
            PRIMARY KEY (document, digest)
        ) WITHOUT ROWID""",
        "CREATE INDEX former_passages_by_age ON former_passages (replaced_at)",
    ),
    (
        # whether anything is of another splitter or embedder is asked before every search
        "CREATE INDEX documents_by_splitter ON documents (collection, splitter)",
        "CREATE INDEX vectors_by_embedder ON vectors (embedder)",
    ),
    (
        # filters look at all attributes, and in a document's row those stand behind its text
        "CREATE INDEX documents_by_attributes ON documents (collection, attributes)",
    ),
    (
        # `row_checksum`; NULL where an earlier version wrote the row
        "ALTER TABLE documents ADD COLUMN text_checksum BLOB",
        "ALTER TABLE chunks ADD COLUMN checksum BLOB",
    ),
)
SCHEMA_VERSION = 1 + len(_UPGRADES)


class Database:
    """Connections to one catalog file. Thread-safe; several processes may have it open.

    A file that cannot be written is read: beside its writer if that is at work, else as long as
    nobody begins to write it, which is looked for after each read.

    Raises:
        StoreError: the file cannot be opened, is no catalog, or was made by a newer program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards the two fields below
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._write_lock = threading.Lock()  # writers of this process queue here, not in SQLite
        self._joined = threading.local()  # `connection`: of the transaction a thread is inside
        self._unwritable = UnwritableFile.at(path)
        self._file: os.stat_result | None = None  # that was opened; None until it was
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"catalog: cannot make {path.parent}: {error.strerror}") from error
        with self._translated():
            connection = self._connect()
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._file = self._stat()
            self._idle.append(connection)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: everything read inside belongs to one moment."""
        if (joined := self._own_transaction()) is not None:
            with self._translated():
                yield joined
            return
        with self._borrowed() as connection, self._translated():
            connection.execute("BEGIN")
            try:
                yield connection
                if self._unwritable is not None:
                    self._unwritable.check()
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it happens, or nothing when the block raises.

        Raises:
            StoreError: the disk is full, another process wrote for 30 s on end, or the file has
                been removed or replaced.
        """
        if (joined := self._own_transaction()) is not None:
            with self._translated(), _savepoint(joined):
                yield joined
            return
        if self._unwritable is not None:
            raise self._unwritable.refuse()
        with self._write_lock, self._borrowed() as connection, self._translated():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                self._check_file()  # what is written to a removed one dies with this process
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """One write transaction, and one sync, of all that this thread reads and writes inside.

        A `writing` inside is whole or absent by itself, and what it wrote is read inside. Others
        see all of it when it ends, or nothing when it raises.

        Raises:
            StoreError: see `writing`; it must not be caught inside.
        """
        with self.writing() as connection:
            self._joined.connection = connection
            try:
                yield
            finally:
                self._joined.connection = None

    def _own_transaction(self) -> sqlite3.Connection | None:
        return getattr(self._joined, "connection", None)

    def close(self) -> None:
        """Close every connection, those in use when they are given back. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._pid:
            raise StoreError(
                f"catalog: {self.path} was opened before a fork. Hint: open it in the child"
            )
        with self._lock:
            if self._closed:
                raise ShuttingDown(f"catalog: {self.path} is closed")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            with self._translated():
                connection = self._connect()
        try:
            yield connection
        finally:
            with self._lock:
                keep = not self._closed and len(self._idle) < _IDLE_CONNECTIONS
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _stat(self) -> os.stat_result:
        try:
            return os.stat(self.path)
        except OSError as error:
            raise StoreError(
                f"catalog: {self.path} has lost its file: {error.strerror}. Hint: put it back, or "
                "restart to begin with an empty one"
            ) from error

    def _check_file(self) -> None:
        """Raises `StoreError` where the path leads to another file than was opened, or to none."""
        if self._file is not None and not os.path.samestat(self._stat(), self._file):
            raise StoreError(f"catalog: {self.path} has another file now. Hint: restart")

    def _connect(self) -> sqlite3.Connection:
        if self._unwritable is not None:
            connection = self._unwritable.connect(_BUSY_TIMEOUT_S)
            connection.text_factory = _text
            return connection
        self._check_file()  # SQLite would make an empty one, or read another one beside ours
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = _text
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            _switch_to_wal(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._unwritable is not None:
            found = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if (found, version) != (_APPLICATION_ID, SCHEMA_VERSION):
                raise StoreError(
                    f"catalog: {self.path} has schema version {version}, this chunkcache reads "
                    f"{SCHEMA_VERSION}, and it cannot be written here. Hint: run chunkcache ls "
                    "once as a user who may write there"
                )
            return
        connection.execute("BEGIN IMMEDIATE")  # of two processes, one makes the tables
        try:
            found = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if found != _APPLICATION_ID:
                if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                    raise StoreError(f"catalog: {self.path} is another program's database")
                self._create(connection)
                version = 1
            if not 1 <= version <= SCHEMA_VERSION:
                raise StoreError(
                    f"catalog: {self.path} has schema version {version}, this chunkcache knows "
                    f"{SCHEMA_VERSION}. Hint: upgrade chunkcache, or use another home"
                )
            for statements in _UPGRADES[version - 1 :]:
                for statement in statements:
                    connection.execute(statement)
            if version != SCHEMA_VERSION:
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _create(self, connection: sqlite3.Connection) -> None:
        for statement in _SCHEMA.split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('created_at', ?)", (repr(time.time()),))
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as ours. Programming errors stay what they are."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.NotSupportedError) as error:
            raise StoreError(
                f"catalog: {self.path}: {error}. Hint: check free space and permissions, and that "
                "no other program holds the file locked"
            ) from error
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"catalog: {self.path} is damaged or no catalog: {error}. Hint: restore it from a "
                "backup, or move it away and ingest again"
            ) from error


def _text(octets: bytes) -> str:
    """A text that is damaged is one, too: a query must not fail as a whole for one of its rows."""
    return octets.decode("utf-8", "replace")


@contextmanager
def _savepoint(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction inside another one."""
    connection.execute("SAVEPOINT inner")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk ends all of it
            connection.execute("ROLLBACK TO inner")
            connection.execute("RELEASE inner")
        raise
    connection.execute("RELEASE inner")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Turn write-ahead logging on. SQLite does not wait for its busy timeout here, so we do."""
    give_up_at = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
