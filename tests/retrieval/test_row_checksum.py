"""What a catalog's file holds is given out as it was written, or not at all."""

from __future__ import annotations

import re
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
from chunkcache.retrieval.refresh import refresh
from chunkcache.retrieval.splitter import Splitter
from chunkcache.row_checksum import row_checksum

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
        (also,) = catalog.chunks(*WHERE)
        assert also == catalog.entries.of_document(*WHERE, "doc-a")[0] == sound
        damage: list[CorruptRecord] = []
        assert list(catalog.chunks(*WHERE, damage.append)) == [sound]
        assert re.search("a passage of document 'doc-a' is damaged.*Hint", damage[0].message)
        assert catalog.remove_document("doc-a", *WHERE)
        assert list(catalog.chunks(*WHERE)) == []


def test_one_text_that_is_no_utf8_leaves_the_others_readable(path: Path) -> None:
    """Of single flipped bits in plain English one in eight makes it so."""
    change(path, "UPDATE chunks SET text = CAST(x'74e57874' AS TEXT) WHERE ordinal = 0")
    with closing(Catalog(path)) as catalog:
        _, entries = catalog.entries.all(*WHERE)
        assert len(catalog.entries.searched_texts(*WHERE, entries)) == 2
        assert (
            len(catalog.entries.chunks(*WHERE, entries)) == len(list(catalog.chunks(*WHERE))) == 1
        )


PARAGRAPHS = [f"Owl number {n} hunts voles in the barn at night." for n in range(6)]


@pytest.fixture
def filled(ingestor: Any, catalog: Catalog) -> Path:
    """The catalog's file; six documents of a passage each, in the one that fixtures share."""
    for number, text in enumerate(PARAGRAPHS):
        ingestor.ingest_bytes(f"{number}.txt", text.encode())
    return catalog._database.path


def test_a_search_goes_without_the_damaged_passage(
    filled: Path, retriever: Any, logged: list[Any]
) -> None:
    asked = {"top_k": 3}
    best, second, third = retriever.search(PARAGRAPHS[2], **asked)
    change(filled, "UPDATE chunks SET text = text || '!' WHERE chunk_id = ?", best.chunk_id)
    logged.clear()
    found = retriever.search(PARAGRAPHS[2], **asked)
    assert [chunk.chunk_id for chunk in found[:2]] == [second.chunk_id, third.chunk_id]
    assert len(found) == 3, "another one takes its place"
    (said,) = [line for line in logged if line["event"] == "passage_damaged"]
    assert best.document_id in said["reason"]


def test_a_damaged_text_is_split_no_more_and_keeps_nobody_waiting(
    filled: Path, catalog: Catalog, tokenizer: Any, embedder: Any, logged: list[Any]
) -> None:
    public = ("public", "default")
    damaged = next(iter(catalog.documents(*public))).document_id
    change(filled, "UPDATE documents SET text = text || '!' WHERE document_id = ?", damaged)
    other = Splitter(tokenizer, 8)
    assert refresh(catalog, other, embedder, *public).documents == 6
    assert damaged not in {chunk.document_id for chunk in catalog.chunks(*public)}
    assert len({chunk.document_id for chunk in catalog.chunks(*public)}) == 5
    (said,) = [line for line in logged if line["event"] == "document_unsplittable"]
    assert "is damaged" in said["reason"]
    assert refresh(catalog, other, embedder, *public).documents == 0
    stored = catalog.document(*public, damaged)
    assert stored is not None
    with pytest.raises(CorruptRecord, match=f"the text of document '{damaged}' is damaged"):
        stored.verify()  # its row has been written again, and is no less damaged


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
        stored = catalog.document(*WHERE, "doc-a")
        assert stored is not None
        stored.verify()


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_fields_that_run_on_are_told_apart(one: list[str], other: list[str]) -> None:
    assert (row_checksum(one) == row_checksum(other)) == (one == other)
    assert row_checksum(["ab", "c"]) != row_checksum(["a", "bc"])
