"""Chunks and vectors by entry, as indexes and refreshing use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from chunkcache.retrieval.catalog import Catalog

if TYPE_CHECKING:
    pass

SPACE = "space one"


def test_chunks_of_another_splitter_are_replaced_unless_the_document_changed(
    catalog: Catalog, chunk: Any, put: Any
) -> None:
    put(catalog)
    put(catalog, "doc-b", splitter="s2")
    assert [each for each, _ in catalog.split_otherwise("t", "default", "s2")] == ["doc-a"]
    read = catalog.document("t", "default", "doc-a")
    assert read is not None

    def renew() -> bool:
        return catalog.replace_chunks(
            "t", "default", read, [chunk(5)], np.ones((1, 3)), splitter="s2", space=SPACE
        )

    put(catalog, sha256="bb")  # ingested between reading and writing
    assert renew() is False
    assert len(catalog.entries.of_document("t", "default", "doc-a")) == 3
    put(catalog, sha256="aa")
    catalog.set_attributes("t", "default", "doc-a", {"kept": True})
    assert renew() is True
    assert catalog.entries.of_document("t", "default", "doc-a") == [chunk(5)]
    stored = catalog.document("t", "default", "doc-a")
    assert stored is not None and stored.document.attributes == {"kept": True}
    assert stored.info.num_chunks == 1
    assert renew() is False  # the splitter is no longer the one that was read
    catalog.remove_document("doc-a", "t", "default")
    assert renew() is False


def test_vectors_are_kept_exactly_and_by_space(catalog: Catalog, put: Any) -> None:
    put(catalog)
    generation, entries = catalog.entries.all("t", "default")
    assert generation == catalog.generation("t", "default")
    present, vectors = catalog.entries.read(entries[::-1], SPACE)
    by_entry = dict(zip(present.tolist(), vectors.tolist(), strict=True))
    chunks = catalog.entries.chunks("t", "default", entries)
    assert set(by_entry) == set(chunks) == set(entries.tolist())
    for entry, vector in by_entry.items():
        assert vector == [chunks[entry].start_char / 10, 1.0, 0.5]
    assert catalog.entries.read(entries, "space two")[1].shape == (0, 0)
    assert len(catalog.entries.without_vector("t", "default", SPACE)) == 0
    assert set(catalog.entries.without_vector("t", "default", "space two")) == set(entries)


def test_vectors_of_a_new_space_replace_the_old_ones(catalog: Catalog, put: Any) -> None:
    put(catalog)
    _, entries = catalog.entries.all("t", "default")
    put(catalog, "doc-b", [7])
    catalog.remove_document("doc-b", "t", "default")
    gone = [10**12]
    catalog.entries.write("t", "default", [*entries, *gone], np.ones((4, 2)), "space two")
    assert catalog.entries.read(entries, "space two")[1].shape == (3, 2)
    assert len(catalog.entries.read(entries, SPACE)[0]) == 0
    assert len(catalog.entries.read(gone, "space two")[0]) == 0


def test_vectors_by_text_serve_chunks_that_stay(catalog: Catalog, put: Any) -> None:
    put(catalog)
    known = catalog.entries.vectors_by_text("t", "default", "doc-a", SPACE)
    assert known["A title\ntext 2"].tolist() == [2.0, 1.0, 0.5]
    assert catalog.entries.vectors_by_text("t", "default", "doc-a", "space two") == {}


def test_entries_are_never_used_twice(catalog: Catalog, put: Any) -> None:
    seen: set[int] = set()
    for round_number in range(20):
        put(catalog, sha256=str(round_number))
        entries = set(catalog.entries.all("t", "default")[1].tolist())
        assert len(entries) == 3 and not entries & seen
        seen |= entries


def test_thousands_of_entries_are_read_in_batches(catalog: Catalog, put: Any) -> None:
    put(catalog, numbers=range(9000))
    _, entries = catalog.entries.all("t", "default")
    assert len(catalog.entries.read(entries, SPACE)[0]) == 9000
    assert len(catalog.entries.chunks("t", "default", entries)) == 9000
