"""Rows that an earlier version wrote get their checksums: of what they hold, and no more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkcache.errors import StoreError
from chunkcache.retrieval import checksums
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.checksums import fill_checksums, find_without_checksum
from chunkcache.retrieval.database import Database
from chunkcache.retrieval.documents import Document, DocumentKind

WHERE = ("t", "default")
DOCUMENTS, CHUNKS = 5, 3
ALL = DOCUMENTS * (CHUNKS + 1)
TEXT = "größer\0 日本 \U0001f600"


@pytest.fixture
def path(tmp_path: Path, chunk: Any) -> Path:
    """A catalog whose rows have checksums as they are written now."""
    with closing(Catalog(tmp_path / "catalog.sqlite")) as catalog:
        for number in range(DOCUMENTS):
            name = f"doc-{number}"
            document = Document(name, "A", "", "aa", 1, DocumentKind.PLAIN, f"{TEXT} {number}")
            chunks = [chunk(CHUNKS * number + n, name) for n in range(CHUNKS)]
            vectors = np.eye(CHUNKS, 4, dtype=np.float32)
            catalog.put_document(*WHERE, document, chunks, vectors, splitter="s", space="e")
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with closing(Database(path)) as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(kind._replace(rows=2) for kind in checksums._KINDS)
    monkeypatch.setattr(checksums, "_KINDS", few)


def rows(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT entry, checksum FROM chunks ORDER BY entry").fetchall()
        return found + connection.execute("SELECT key, text_checksum FROM documents").fetchall()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount


def forget(path: Path) -> None:
    change(path, "UPDATE chunks SET checksum = NULL", "UPDATE documents SET text_checksum = NULL")


def test_what_is_filled_in_is_what_would_be_written_today(path: Path, database: Database) -> None:
    written = rows(path)
    assert len(written) == ALL and find_without_checksum(database).rows == 0
    forget(path)
    found = find_without_checksum(database)
    assert (found.rows, found.filled, found.damaged) == (ALL, 0, [])
    assert {checksum for _, checksum in rows(path)} == {None}, "looking writes nothing"
    filled = fill_checksums(database)
    assert (filled.rows, filled.filled, filled.damaged) == (ALL, ALL, [])
    assert rows(path) == written
    with closing(Catalog(path)) as catalog:
        assert catalog.generation(*WHERE) == DOCUMENTS, "nothing that can be found has changed"
        assert len(list(catalog.chunks(*WHERE))) == DOCUMENTS * CHUNKS
    assert fill_checksums(database).rows == 0


def test_what_cannot_have_been_written_gets_none(path: Path, database: Database) -> None:
    forget(path)
    change(
        path,
        "UPDATE chunks SET text = CAST(x'74e57874' AS TEXT) WHERE entry = "
        "(SELECT entry FROM chunks c JOIN documents d ON d.key = c.document "
        "WHERE document_id = 'doc-1' AND ordinal = 0)",
        "UPDATE documents SET text = CAST(x'e5' AS TEXT) WHERE document_id = 'doc-2'",
    )
    for look in (find_without_checksum, fill_checksums, fill_checksums):
        found = look(database)
        one, other = found.damaged
        assert "a passage of document 'doc-1' is damaged" in one
        assert "the text of document 'doc-2' is damaged" in other and "Hint" in other
    assert [checksum for _, checksum in rows(path)].count(None) == 2 == found.rows


def test_one_that_was_interrupted_is_gone_on_with(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = rows(path)
    forget(path)
    put, batches = checksums._put, 0

    def twice(*arguments: Any) -> int:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise StoreError("the disk is full")
        return put(*arguments)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="disk is full"):
        patch.setattr(checksums, "_put", twice)
        fill_checksums(database)
    assert find_without_checksum(database).rows == ALL - 4
    assert fill_checksums(database).filled == ALL - 4
    assert rows(path) == written


def test_a_row_that_is_written_meanwhile_keeps_what_it_was_written_with(
    path: Path, database: Database
) -> None:
    forget(path)
    kind = checksums._KINDS[0]
    with database.reading() as connection:
        read = connection.execute(kind.select, (-1, 2)).fetchall()
    change(path, "UPDATE chunks SET checksum = x'00'")
    with database.writing() as connection:
        assert checksums._put(connection, kind, read) == 0
    assert {checksum for _, checksum in rows(path)[: DOCUMENTS * CHUNKS]} == {b"\0"}
