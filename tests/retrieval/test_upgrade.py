"""A catalog of an earlier version: opened, brought up to date whole, and searched."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.chunk import pack_token_ids
from chunkcache.errors import StoreError
from chunkcache.retrieval import database
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import document_id_of
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.loaders import READERS_VERSION

if TYPE_CHECKING:
    from pathlib import Path

WHERE = ("public", "default")
PAGE = "<html><body><h1>Pools</h1><p>Set max_pool_size to 5.</p></body></html>"
READ_BEFORE = "# Pools\n\nSet max\\_pool\\_size to 5."  # as version 1 read the page
VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE collections (key INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL,
    id TEXT NOT NULL, name TEXT NOT NULL, created_at REAL NOT NULL,
    generation INTEGER NOT NULL DEFAULT 0, index_folder TEXT, UNIQUE (tenant, id));
CREATE TABLE documents (key INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL REFERENCES collections (key) ON DELETE CASCADE,
    document_id TEXT NOT NULL, title TEXT NOT NULL, url TEXT NOT NULL, sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, attributes TEXT NOT NULL,
    splitter TEXT NOT NULL, num_chunks INTEGER NOT NULL, num_tokens INTEGER NOT NULL,
    added_at REAL NOT NULL, UNIQUE (collection, document_id));
CREATE TABLE chunks (entry INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents (key) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL, chunk_id TEXT NOT NULL, title TEXT NOT NULL, url TEXT NOT NULL,
    start_char INTEGER NOT NULL, end_char INTEGER NOT NULL, text TEXT NOT NULL,
    token_ids BLOB NOT NULL, UNIQUE (document, ordinal));
CREATE INDEX chunks_by_id ON chunks (chunk_id);
CREATE TABLE vectors (entry INTEGER PRIMARY KEY REFERENCES chunks (entry) ON DELETE CASCADE,
    embedder TEXT NOT NULL, vector BLOB NOT NULL);
INSERT INTO meta VALUES ('created_at', '1700000000.0');
INSERT INTO collections (tenant, id, name, created_at) VALUES
    ('public', 'default', 'default', 1.0), ('public', 'kept', 'a name', 2.0);
PRAGMA application_id = 1128481108;
PRAGMA user_version = 1;
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "pools.html"
    path.write_text(PAGE)
    return path


@pytest.fixture
def old(tmp_path: Path, page: Path) -> Path:
    """A catalog as version 1 left it, with that page in it."""
    path = tmp_path / "home" / "catalog.sqlite"
    path.parent.mkdir()
    sha256 = hashlib.sha256(PAGE.encode()).hexdigest()
    document_id = document_id_of("file", str(page))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
        connection.execute(
            "INSERT INTO documents VALUES (1, 1, ?, 'Pools', '', ?, 9, 'markdown', ?, '{}',"
            " 'splitter/1 24 0 ab', 1, 2, 5.0)",
            (document_id, sha256, READ_BEFORE),
        )
        connection.execute(
            "INSERT INTO chunks VALUES (7, 1, 0, 'chunk-old', 'Pools', '', 0, ?, ?, ?)",
            (len(READ_BEFORE), READ_BEFORE, pack_token_ids([1, 2])),
        )
        connection.commit()
    return path


def columns(path: Path, table: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA table_info({table})").fetchall()


def test_an_earlier_catalog_gets_the_tables_of_a_new_one(old: Path, tmp_path: Path) -> None:
    with closing(Catalog(old)) as catalog, closing(Catalog(tmp_path / "new.sqlite")):
        (chunk,) = catalog.chunks(*WHERE)
        assert (chunk.text, chunk.headings, chunk.opening) == (READ_BEFORE, (), "")
        found = catalog.collection("public", "kept")
        assert (found.name, found.metadata, found.expires_at) == ("a name", {}, None)
    for table in ("collections", "documents", "chunks", "vectors"):
        found = {column[1:5] for column in columns(old, table)}
        assert found == {column[1:5] for column in columns(tmp_path / "new.sqlite", table)}
    with closing(Catalog(old)) as catalog:  # once is enough
        assert len(list(catalog.chunks(*WHERE))) == 1


def test_an_upgrade_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*database._UPGRADES, ("ALTER TABLE no_such_table ADD COLUMN x",))
    with monkeypatch.context() as patch:
        patch.setattr(database, "_UPGRADES", broken)
        with pytest.raises(StoreError, match="no_such_table"):
            Catalog(old)
    assert "headings" not in [column[1] for column in columns(old, "chunks")]
    with closing(Catalog(old)) as catalog:
        assert len(list(catalog.chunks(*WHERE))) == 1


def test_the_first_search_splits_and_embeds_the_stored_text_again(
    old: Path, retriever: Any, catalog: Catalog
) -> None:
    (hit,) = retriever.search("max_pool_size", top_k=1)
    assert hit.text == "Set max\\_pool\\_size to 5." and hit.chunk_id != "chunk-old"
    assert READ_BEFORE[hit.start_char : hit.end_char] == hit.text
    assert hit.lead == "# Pools\n"
    stored = catalog.document(*WHERE, hit.document_id)
    assert stored is not None and stored.document.text == READ_BEFORE


def test_files_are_read_again_when_they_were_read_by_an_earlier_version(
    old: Path, page: Path, ingestor: Ingestor, catalog: Catalog
) -> None:
    assert ingestor.ingest_paths([page]).updated == 1
    (chunk,) = catalog.chunks(*WHERE)
    stored = catalog.document(*WHERE, chunk.document_id)
    assert stored is not None and stored.document.reader == READERS_VERSION
    assert stored.document.text == "# Pools\n\nSet max_pool_size to 5."
    assert stored.info.added_at == 5.0
    assert ingestor.ingest_paths([page]).unchanged == 1


def test_a_newer_catalog_is_refused_and_left_as_it_is(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"schema version 99.*upgrade chunkcache"):
        Catalog(old)
    assert "headings" not in [column[1] for column in columns(old, "chunks")]
