"""Collections, documents, chunks and vectors on disk; every change whole or absent."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.retrieval import catalog as catalog_module
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import DocumentKind

SPACE = "space one"


# ---------------------------------------------------------------- collections


def test_every_tenant_has_the_default_collection_from_the_beginning(
    catalog: Catalog, put: Any
) -> None:
    (default,) = catalog.collections("anybody")
    assert (default.id, default.name) == ("default", "default")
    assert catalog.collection("somebody", "default") == default
    assert catalog.documents("anybody", "default") == []
    assert list(catalog.chunks("anybody", "default")) == []
    assert catalog.generation("anybody", "default") == 0
    put(catalog, tenant="anybody")
    assert catalog.collections("anybody") == [default]


def test_collections_belong_to_their_tenant_and_are_listed_in_order(catalog: Catalog) -> None:
    first, second = (catalog.create_collection("t", name) for name in ("same", "same"))
    assert first.id != second.id
    assert [c.id for c in catalog.collections("t")] == ["default", first.id, second.id]
    assert catalog.collection("t", first.id) == first
    assert [c.id for c in catalog.collections("other")] == ["default"]


def test_an_unknown_collection_is_not_found_by_any_method(catalog: Catalog, put: Any) -> None:
    foreign = catalog.create_collection("other", "theirs").id
    for unknown in ("vs_none", foreign, "Default"):
        calls = [
            lambda c: catalog.collection("t", c),
            lambda c: catalog.documents("t", c),
            lambda c: catalog.document("t", c, "doc-a"),
            lambda c: catalog.document_info("t", c, "doc-a"),
            lambda c: catalog.chunks("t", c),
            lambda c: catalog.chunks_by_id("t", c, ["x"]),
            lambda c: catalog.generation("t", c),
            lambda c: catalog.remove_document("doc-a", "t", c),
            lambda c: catalog.split_otherwise("t", c, "s1"),
            lambda c: catalog.entries.all("t", c),
            lambda c: catalog.entries.without_vector("t", c, SPACE),
            lambda c: put(catalog, collection=c),
        ]
        for call in calls:
            with pytest.raises(NotFound, match="No such vector store"):
                call(unknown)
        assert catalog.delete_collection("t", unknown) is False
    assert catalog.documents("other", foreign) == []


def test_what_changes_documents_makes_nothing_for_a_tenant_nobody_knows(catalog: Catalog) -> None:
    assert catalog.remove_document("doc-a", "nobody", "default") is False
    catalog.set_attributes("nobody", "default", "doc-a", {"size": 1.0})
    catalog.files.name("nobody", "default", "doc-a", "a.md", None)
    assert not catalog.files.move("nobody", "default", "doc-a", Path("a.md"), Path("b.md"))
    assert catalog.entries.generations() == {}


def test_a_name_that_is_too_long_is_refused(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="at most 256 characters"):
        catalog.create_collection("t", "n" * 257)


def test_deleting_a_collection_deletes_all_that_is_in_it(
    catalog: Catalog, tmp_path: Path, put: Any
) -> None:
    gone, kept = (catalog.create_collection("t", name).id for name in ("gone", "kept"))
    for collection in (gone, kept):
        put(catalog, collection=collection)
    assert catalog.delete_collection("t", gone) is True
    with pytest.raises(NotFound):
        catalog.documents("t", gone)
    assert len(list(catalog.chunks("t", kept))) == 3
    with sqlite3.connect(tmp_path / "home" / "catalog.sqlite") as connection:
        for table, count in {"documents": 1, "chunks": 3, "vectors": 3}.items():
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (count,)
    connection.close()


def test_deleting_default_empties_it_and_its_generation_goes_on(catalog: Catalog, put: Any) -> None:
    assert catalog.delete_collection("t", "default") is True
    put(catalog)
    before = catalog.generation("t", "default")
    assert catalog.delete_collection("t", "default") is True
    assert catalog.documents("t", "default") == []
    assert catalog.generation("t", "default") > before
    assert catalog.collection("t", "default").id == "default"


def test_deleting_a_tenant_deletes_only_that_tenant(catalog: Catalog, put: Any) -> None:
    own = catalog.create_collection("t", "own").id
    put(catalog)
    put(catalog, "doc-b", collection=own)
    put(catalog, tenant="other")
    assert catalog.delete_tenant("t") == 2
    assert [c.id for c in catalog.collections("t")] == ["default"]
    assert catalog.documents("t", "default") == []
    assert len(catalog.documents("other", "default")) == 1


def test_index_files_go_with_their_collection_and_nothing_else_does(
    catalog: Catalog, tmp_path: Path
) -> None:
    collection = catalog.create_collection("t", "c").id
    folder = tmp_path / "indexes" / "x"
    folder.mkdir(parents=True)
    for name in ("a.idx", "b.idx.12.partial", "precious.txt"):
        (folder / name).write_text("x")
    catalog.note_index_folder("t", collection, folder)
    assert catalog.index_folders() == {folder}
    catalog.delete_collection("t", collection)
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    assert catalog.index_folders() == set()


# ---------------------------------------------------------------- documents and chunks


def test_a_document_comes_back_as_it_was_put(catalog: Catalog, chunk: Any, put: Any) -> None:
    info = put(catalog)
    assert (info.num_chunks, info.num_tokens, info.size_bytes, info.sha256) == (3, 9, 99, "aa")
    assert catalog.documents("t", "default") == [info]
    assert catalog.document_info("t", "default", "doc-a") == info
    stored = catalog.document("t", "default", "doc-a")
    assert stored is not None
    assert (stored.document.text, stored.document.kind) == ("whole text", DocumentKind.PLAIN)
    assert stored.document.attributes == {"year": 2024.0, "open": True}
    assert (stored.info, stored.splitter) == (info, "s1")
    assert list(catalog.chunks("t", "default")) == [chunk(n) for n in range(3)]
    assert catalog.entries.of_document("t", "default", "doc-a") == [chunk(n) for n in range(3)]


def test_documents_are_listed_by_title(catalog: Catalog, put: Any) -> None:
    for document_id, title in (("doc-1", "b"), ("doc-2", "a"), ("doc-3", "b")):
        put(catalog, document_id, title=title)
    ids = [info.document_id for info in catalog.documents("t", "default")]
    assert ids == ["doc-2", "doc-1", "doc-3"]


def test_an_edited_document_has_its_new_chunks_only(catalog: Catalog, chunk: Any, put: Any) -> None:
    first = put(catalog)
    second = put(catalog, numbers=[1, 8], sha256="bb")
    assert second.added_at == first.added_at
    assert catalog.documents("t", "default") == [second]
    assert list(catalog.chunks("t", "default")) == [chunk(1), chunk(8)]
    found = catalog.chunks_by_id("t", "default", ["doc-a.0", "doc-a.8", "doc-a.1"])
    assert found == [None, chunk(8), chunk(1)]


def test_a_removed_document_is_unreachable(catalog: Catalog, put: Any) -> None:
    put(catalog)
    put(catalog, "doc-b")
    _, entries = catalog.entries.all("t", "default")
    assert catalog.remove_document("doc-a", "t", "default") is True
    assert catalog.remove_document("doc-a", "t", "default") is False
    assert catalog.document("t", "default", "doc-a") is None
    assert {c.document_id for c in catalog.chunks("t", "default")} == {"doc-b"}
    assert catalog.chunks_by_id("t", "default", ["doc-a.0"]) == [None]
    assert len(catalog.entries.chunks("t", "default", entries)) == 3
    assert len(catalog.entries.read(entries, SPACE)[0]) == 3


def test_chunks_of_other_tenants_and_collections_are_not_found(catalog: Catalog, put: Any) -> None:
    put(catalog)
    own = catalog.create_collection("t", "own").id
    _, entries = catalog.entries.all("t", "default")
    for tenant, collection in (("other", "default"), ("t", own)):
        assert catalog.chunks_by_id(tenant, collection, ["doc-a.0"]) == [None]
        assert catalog.entries.chunks(tenant, collection, entries) == {}
        assert catalog.document_info(tenant, collection, "doc-a") is None
        assert catalog.remove_document("doc-a", tenant, collection) is False


def test_chunks_are_read_in_pages_in_order(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, chunk: Any, put: Any
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.entries._PAGE_CHUNKS", 4)
    put(catalog, "doc-b", range(9))
    put(catalog, "doc-a", range(4))
    put(catalog, "doc-c", [])
    expected = [chunk(n, "doc-b") for n in range(9)] + [chunk(n) for n in range(4)]
    assert list(catalog.chunks("t", "default")) == expected


def test_changes_during_an_iteration_do_not_disturb_it(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, put: Any
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.entries._PAGE_CHUNKS", 2)
    put(catalog, "doc-a", range(6))
    put(catalog, "doc-b", range(2))
    chunks = catalog.chunks("t", "default")
    seen = [next(chunks), next(chunks)]
    catalog.remove_document("doc-a", "t", "default")
    put(catalog, "doc-c", range(2))
    seen += chunks
    assert [c.chunk_id for c in seen] == ["doc-a.0", "doc-a.1", "doc-b.0", "doc-b.1"]


def test_every_change_raises_the_generation_of_its_collection_alone(
    catalog: Catalog, put: Any
) -> None:
    own = catalog.create_collection("t", "own").id
    seen = [catalog.generation("t", "default")]

    def grew() -> bool:
        seen.append(catalog.generation("t", "default"))
        return seen[-1] > seen[-2]

    put(catalog)
    assert grew()
    put(catalog, sha256="bb")
    assert grew()
    _, entries = catalog.entries.all("t", "default")
    catalog.entries.write("t", "default", entries, np.ones((3, 2)), "space two")
    assert grew()
    catalog.remove_document("doc-none", "t", "default")
    put(catalog, collection=own)
    assert not grew()
    catalog.remove_document("doc-a", "t", "default")
    assert grew()


def test_attributes_can_be_replaced(catalog: Catalog, put: Any) -> None:
    put(catalog)
    catalog.set_attributes("t", "default", "doc-a", {"kind": "x"})
    catalog.set_attributes("t", "default", "doc-none", {"kind": "x"})
    stored = catalog.document("t", "default", "doc-a")
    assert stored is not None and stored.document.attributes == {"kind": "x"}


def test_labels_and_expiry_of_a_collection(catalog: Catalog, monkeypatch: Any) -> None:
    made = catalog.create_collection("t", "a", metadata={"k": "v"}, expires_after_days=3)
    assert catalog.collection("t", made.id) == made
    assert made.last_active_at is not None
    assert made.expires_at == made.last_active_at + 3 * 86_400
    catalog.note_use("t", made.id)
    assert catalog.collection("t", made.id) == made  # within a minute
    monkeypatch.setattr(catalog_module, "_USE_NOTED_AFTER_S", 0.0)
    catalog.note_use("t", made.id)
    now = catalog.collection("t", made.id).last_active_at
    assert now is not None and made.last_active_at is not None and now > made.last_active_at
    kept = catalog.change_collection("t", made.id, name="b", metadata={}, expires_after_days=None)
    assert (kept.name, kept.metadata, kept.expires_at) == ("b", {}, None)
    named = catalog.change_collection(
        "t", "default", name="mine", metadata={"k": "v"}, expires_after_days=None
    )
    assert catalog.collections("t")[0] == named == catalog.collection("t", "default")
    with pytest.raises(NotFound):
        catalog.change_collection("u", made.id, name="b", metadata={}, expires_after_days=None)
