"""Rows of the catalog that an earlier version wrote, and which have no checksum yet.

A checksum given now is of what a row holds now: damage done before is in it, and only damage that
comes later is found by it. What cannot have been written as it is, gets none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from chunkcache.retrieval import catalog_sql as sql
from chunkcache.row_checksum import row_checksum

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from chunkcache.retrieval.database import Database

_ROWS = 64  # in one transaction, or one read
_DOCUMENTS = 4  # a document's text may be megabytes


class _Kind(NamedTuple):
    """Rows of one table; the last two columns are the text as it lies in the file, and the key."""

    select: str
    update: str
    rows: int
    fields: slice  # of a row, that the checksum is over
    document_id: int
    text: int
    words: str


_KINDS = (
    _Kind(
        f"SELECT {sql.CHUNK_COLUMNS}, CAST(c.text AS BLOB), c.entry FROM chunks c "
        "JOIN documents d ON d.key = c.document "
        "WHERE c.checksum IS NULL AND c.entry > ? ORDER BY c.entry LIMIT ?",
        "UPDATE chunks SET checksum = ? WHERE entry = ? AND checksum IS NULL",
        _ROWS, slice(0, 10), 3, 2, "a passage",
    ),
    _Kind(
        "SELECT document_id, text, CAST(text AS BLOB), key FROM documents "
        "WHERE text_checksum IS NULL AND key > ? ORDER BY key LIMIT ?",
        "UPDATE documents SET text_checksum = ? WHERE key = ? AND text_checksum IS NULL",
        _DOCUMENTS, slice(1, 2), 0, 1, "the text",
    ),
)  # fmt: skip


@dataclass(slots=True)
class WithoutChecksum:
    """What was found: rows without one, how many have one now, and those that are damaged."""

    rows: int = 0
    filled: int = 0
    damaged: list[str] = field(default_factory=list)


def find_without_checksum(database: Database) -> WithoutChecksum:
    """Look at every passage and text that has none; nothing is written. Reads them all."""
    return _each(database, write=False)


def fill_checksums(database: Database) -> WithoutChecksum:
    """Give every passage and text that has none the checksum of what it holds.

    In small transactions, so that others may write in between, and one that is killed is gone on
    with by the next.

    Raises:
        StoreError: the catalog cannot be written; what was filled in until then stays.
    """
    return _each(database, write=True)


def _each(database: Database, *, write: bool) -> WithoutChecksum:
    found = WithoutChecksum()
    for kind in _KINDS:
        after = -1  # entries and keys are not negative
        opened = database.writing if write else database.reading
        while True:
            with opened() as connection:
                rows = connection.execute(kind.select, (after, kind.rows)).fetchall()
                found.rows += len(rows)
                sound = list(_sound(rows, kind, found.damaged))
                if write:
                    found.filled += _put(connection, kind, sound)
            if not rows:
                break
            after = rows[-1][-1]
    return found


def _sound(rows: list[Any], kind: _Kind, damaged: list[str]) -> Iterator[Any]:
    """Those whose text is one: nothing else was ever written there."""
    for row in rows:
        if row[kind.text].encode() == row[-2]:
            yield row
        else:
            damaged.append(
                f"catalog: {kind.words} of document {row[kind.document_id]!r} is damaged, it is no "
                "UTF-8. Hint: remove the document and ingest it again; then look after the disk"
            )


def _put(connection: sqlite3.Connection, kind: _Kind, rows: list[Any]) -> int:
    put = 0
    for row in rows:
        done = connection.execute(kind.update, (row_checksum(row[kind.fields]), row[-1]))
        put += done.rowcount
    return put
