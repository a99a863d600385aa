"""What a catalog's file holds is given out as it was written, or not at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkcache.errors import CorruptRecord
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import Document, DocumentKind, passage_digest
from chunkcache.retrieval.row_checksum import row_checksum

WHERE = ("t", "default")
OTHERS = {
    "text": "other", "token_ids": b"\1\0\0\0", "title": "other", "url": "x", "opening": "x",
    "start_char": 1, "end_char": 99, "headings": '["x"]', "chunk_id": "chunk-x",
}  # fmt: skip


def put(catalog: Catalog, chunks: list[Any]) -> None:
    document = Document("doc-a", "A", "", "aa", 1, DocumentKind.PLAIN, "the whole text")
    vectors = np.eye(len(chunks), 3, dtype=np.float32)
    catalog.put_document(*WHERE, document, chunks, vectors, splitter="s1", space="e")


@pytest.fixture
def path(tmp_path: Path, chunk: Any) -> Path:
    with closing(Catalog(tmp_path / "catalog.sqlite")) as catalog:
        put(catalog, [chunk(0), chunk(1)])
    return tmp_path / "catalog.sqlite"


def change(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


@pytest.mark.parametrize("column", OTHERS)
def test_a_damaged_passage_is_given_to_nobody(path: Path, column: str) -> None:
    change(path, f"UPDATE chunks SET {column} = ? WHERE ordinal = 0", OTHERS[column])
    with closing(Catalog(path)) as catalog:
        _, entries = catalog.entries.all(*WHERE)
        (sound,) = catalog.entries.chunks(*WHERE, entries).values()
        (again,) = catalog.entries.in_any_collection("t", [int(e) for e in entries]).values()
        assert sound.chunk_id == again.chunk_id
        with pytest.raises(CorruptRecord, match=r"a passage of document 'doc-a' is damaged.*Hint"):
            list(catalog.chunks(*WHERE))
        assert catalog.remove_document("doc-a", *WHERE)
        assert list(catalog.chunks(*WHERE)) == []


def test_a_damaged_document_is_not_split_again(path: Path) -> None:
    change(path, "UPDATE documents SET text = ?", "the hole text")
    with (
        closing(Catalog(path)) as catalog,
        pytest.raises(CorruptRecord, match="the text of document 'doc-a' is damaged"),
    ):
        catalog.document(*WHERE, "doc-a")


def test_a_damaged_former_passage_is_nobodys(path: Path, chunk: Any) -> None:
    digest = passage_digest(chunk(0).text)
    with closing(Catalog(path, keep_former_s=60)) as catalog:
        put(catalog, [chunk(1)])
        assert catalog.former_passage(*WHERE, "doc-a", digest) == chunk(0).text
    change(path, "UPDATE former_passages SET text = 'other' WHERE digest = ?", digest)
    with closing(Catalog(path, keep_former_s=60)) as catalog:
        assert catalog.former_passage(*WHERE, "doc-a", digest) is None


def test_rows_of_an_earlier_version_are_believed(path: Path) -> None:
    change(path, "UPDATE chunks SET checksum = NULL WHERE ordinal = 0")
    change(path, "UPDATE documents SET text_checksum = NULL")
    with closing(Catalog(path)) as catalog:
        assert len(list(catalog.chunks(*WHERE))) == 2
        assert catalog.document(*WHERE, "doc-a") is not None


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_fields_that_run_on_are_told_apart(one: list[str], other: list[str]) -> None:
    assert (row_checksum(one) == row_checksum(other)) == (one == other)
    assert row_checksum(["ab", "c"]) != row_checksum(["a", "bc"])
