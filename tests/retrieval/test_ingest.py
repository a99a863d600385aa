"""Files, uploads and texts into the catalog."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import NotFound
from chunkcache.retrieval.documents import searched_text, vector_space
from chunkcache.retrieval.embedder import HashingEmbedder
from chunkcache.retrieval.ingest import Ingestor

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.splitter import Splitter

# ---------------------------------------------------------------- files


def test_a_folder_is_ingested_and_reported(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path, long_text: Any
) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "a.md").write_text("# Foxes\n\n" + long_text(1, 2, 3))
    (docs / "sub" / "b.txt").write_text("A lazy dog.")
    (docs / "bad.txt").write_bytes(b"\x00\x01")
    (docs / "empty.txt").write_text("")
    (docs / "x.png").write_bytes(b"x")
    calls: list[tuple[int, int, str]] = []
    report = ingestor.ingest_paths([docs], on_progress=lambda *call: calls.append(call))
    chunks = list(catalog.chunks("public", "default"))
    assert (report.added, report.updated, report.unchanged, report.skipped) == (2, 0, 0, 3)
    assert report.chunks == len(chunks) > 3
    assert report.tokens == sum(len(chunk.token_ids) for chunk in chunks)
    assert report.problems == [
        f"{docs}: 1 skipped: unknown type .png",
        f"{docs}/bad.txt: a binary file, not text",
        f"{docs}/empty.txt: the file is empty",
    ]
    names = [f"{docs}/{name}" for name in ("a.md", "bad.txt", "empty.txt", "sub/b.txt")]
    assert calls == [(n, 4, name) for n, name in enumerate(names, start=1)]


def test_chunks_carry_what_a_citation_needs(
    ingestor: Ingestor, catalog: Catalog, splitter: Splitter, tmp_path: Path, long_text: Any
) -> None:
    (tmp_path / "a.md").write_text("# Foxes\r\n\r\n" + long_text(1, 2, 3))
    ingestor.ingest_paths([tmp_path / "a.md"])
    (info,) = catalog.documents("public", "default")
    stored = catalog.document("public", "default", info.document_id)
    assert stored is not None and "\r" not in stored.document.text
    for chunk in catalog.chunks("public", "default"):
        assert stored.document.text[chunk.start_char : chunk.end_char] == chunk.text
        assert chunk.token_ids == splitter.encode(chunk.text)
        assert (chunk.document_id, chunk.title) == (info.document_id, "Foxes")


def test_the_same_content_again_is_neither_parsed_nor_embedded(
    ingestor: Ingestor,
    catalog: Catalog,
    embedder: Any,
    tmp_path: Path,
    monkeypatch: Any,
    long_text: Any,
) -> None:
    (tmp_path / "a.txt").write_text(long_text(1, 2))
    ingestor.ingest_paths([tmp_path / "a.txt"])
    generation = catalog.generation("public", "default")
    embedder.texts.clear()

    def parsed(*_: Any) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr("chunkcache.retrieval.ingest.load", parsed)
    os.utime(tmp_path / "a.txt", (1, 1))
    report = ingestor.ingest_paths([tmp_path / "." / "a.txt"])
    assert (report.unchanged, report.added, report.chunks, report.tokens) == (1, 0, 0, 0)
    assert embedder.texts == []
    assert catalog.generation("public", "default") == generation


def test_an_edit_replaces_the_chunks_and_embeds_only_what_is_new(
    ingestor: Ingestor, catalog: Catalog, embedder: Any, tmp_path: Path, long_text: Any
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(long_text(1, 2, 3, 4))
    ingestor.ingest_paths([path])
    before = {chunk.chunk_id: chunk.text for chunk in catalog.chunks("public", "default")}
    embedder.texts.clear()
    path.write_text(long_text(1, 9, 3, 4))
    report = ingestor.ingest_paths([path])
    assert (report.added, report.updated) == (0, 1)
    assert len(embedder.texts) == 1 and "number 9" in embedder.texts[0]
    after = {chunk.chunk_id: chunk.text for chunk in catalog.chunks("public", "default")}
    assert not any("number 2" in text for text in after.values())
    assert all(before[chunk_id] == after[chunk_id] for chunk_id in before.keys() & after.keys())
    assert before.keys() & after.keys() and before.keys() - after.keys()
    assert len(catalog.documents("public", "default")) == 1


def test_stored_vectors_are_those_of_the_chunks_after_an_edit(
    ingestor: Ingestor, catalog: Catalog, embedder: Any, tmp_path: Path, long_text: Any
) -> None:
    """The reused vectors against their twin, embedding everything afresh."""
    path = tmp_path / "a.txt"
    for numbers in ((1, 2, 3), (3, 1, 4), (4, 4, 1)):
        path.write_text(long_text(*numbers))
        ingestor.ingest_paths([path])
    _, entries = catalog.entries.all("public", "default")
    chunks = catalog.entries.chunks("public", "default", entries)
    present, vectors = catalog.entries.read(entries, vector_space(embedder))
    assert len(present) == len(chunks) == 3
    for entry, vector in zip(present.tolist(), vectors, strict=True):
        fresh = HashingEmbedder(256).embed([searched_text(chunks[entry])])[0]
        assert vector.tolist() == fresh.tolist()


def test_an_included_file_is_read_within_the_folder_and_its_edit_is_an_edit(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path
) -> None:
    def text() -> str:
        (info,) = catalog.documents("public", "default")
        stored = catalog.document("public", "default", info.document_id)
        assert stored is not None
        return stored.document.text

    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "outside.inc").write_text("A secret.")
    (folder / "shared.inc").write_text("Shared words.")
    (folder / "a.rst").write_text(
        "Title\n=====\n\n.. include:: shared.inc\n\n.. include:: ../outside.inc\n\nThe end.\n"
    )
    assert ingestor.ingest_paths([folder]).added == 1
    assert text() == "# Title\n\nShared words.\n\nThe end."
    assert ingestor.ingest_paths([folder]).unchanged == 1
    (folder / "shared.inc").write_text("Other words.")
    assert ingestor.ingest_paths([folder]).updated == 1
    assert text() == "# Title\n\nOther words.\n\nThe end."
    assert ingestor.ingest_paths([folder / "a.rst"]).unchanged == 1


@pytest.mark.parametrize("now", [b"", b"\0binary", b"   "])
def test_a_file_that_lost_its_text_loses_its_chunks(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path, now: bytes, texts: Any
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("A lazy dog.")
    ingestor.ingest_paths([path])
    path.write_bytes(now)
    report = ingestor.ingest_paths([path])
    assert report.skipped == 1 and "Its earlier version was removed" in report.problems[0]
    assert texts(catalog) == []
    assert "removed" not in ingestor.ingest_paths([path]).problems[0]


def test_a_file_that_cannot_be_opened_keeps_its_chunks(
    ingestor: Ingestor,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: Any,
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("A lazy dog.")
    ingestor.ingest_paths([path])

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    report = ingestor.ingest_paths([path])
    assert report.problems == [f"{path}: Permission denied"]
    assert texts(catalog) == ["A lazy dog."]


def test_files_over_the_limit_are_skipped_before_they_are_read(
    catalog: Catalog, splitter: Splitter, embedder: Any, retrieval: Any, tmp_path: Path
) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text("x" * 11)
    paths[1].write_text("x" * 10)
    ingestor = Ingestor(catalog, splitter, embedder, retrieval(max_file_bytes=10))
    report = ingestor.ingest_paths(paths)
    assert (report.added, report.skipped) == (1, 1)
    assert "a.txt: 11 bytes, at most 10" in report.problems[0]


def test_two_files_with_the_same_text_are_two_documents(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A lazy dog.")
    ingestor.ingest_paths([tmp_path])
    assert len({d.document_id for d in catalog.documents("public", "default")}) == 2
    assert len({c.chunk_id for c in catalog.chunks("public", "default")}) == 2


def test_ids_are_the_same_in_every_catalog_and_safe_in_urls(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "ä b?.txt").write_text("A lazy dog.")
    ingestor.ingest_paths([tmp_path], tenant="one")
    ingestor.ingest_paths([tmp_path], tenant="two")
    (first,), (second,) = (list(catalog.chunks(tenant, "default")) for tenant in ("one", "two"))
    assert (first.chunk_id, first.document_id) == (second.chunk_id, second.document_id)
    assert all(c.isascii() and (c.isalnum() or c == "-") for c in first.chunk_id)
    assert first.document_id.startswith("doc-") and first.chunk_id.startswith("chunk-")


def test_documents_go_to_the_named_tenant_and_collection(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path, texts: Any
) -> None:
    (tmp_path / "a.txt").write_text("A lazy dog.")
    own = catalog.create_collection("t", "own").id
    ingestor.ingest_paths([tmp_path], tenant="t", collection=own)
    assert texts(catalog, "t", own) == ["A lazy dog."]
    assert texts(catalog, "t") == texts(catalog) == []
    with pytest.raises(NotFound):
        ingestor.ingest_paths([tmp_path], tenant="public", collection=own)
