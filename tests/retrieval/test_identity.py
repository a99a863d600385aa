"""Which document a file is, when files and folders are moved, renamed, copied and swapped."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.retrieval import database
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import document_id_of, vector_space

if TYPE_CHECKING:
    from chunkcache.protocol import DocumentInfo
    from chunkcache.retrieval.ingest import Ingestor


@pytest.fixture
def docs(tmp_path: Path, long_text: Any) -> Path:
    """A folder in which two files have the same content, at different places."""
    folder = tmp_path / "docs"
    for name, text in {
        "guide.md": "# Foxes\n\n" + long_text(1, 2, 3),
        "a/LICENSE.txt": long_text(7),
        "b/LICENSE.txt": long_text(7),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def by_path(catalog: Catalog) -> dict[str, DocumentInfo]:
    return {info.path: info for info in catalog.documents("public", "default")}


def everything(catalog: Catalog, embedder: Any) -> Any:
    """Entries, chunks and vectors: what a document that only moved must keep."""
    _, entries = catalog.entries.all("public", "default")
    present, vectors = catalog.entries.read(entries, vector_space(embedder))
    chunks = catalog.entries.chunks("public", "default", entries)
    return chunks, dict(zip(present.tolist(), vectors.tolist(), strict=True))


def test_a_moved_folder_is_renamed_and_not_doubled(
    ingestor: Ingestor, catalog: Catalog, embedder: Any, docs: Path
) -> None:
    ingestor.ingest_paths([docs])
    before, held = by_path(catalog), everything(catalog, embedder)
    embedder.texts.clear()
    there = docs.rename(docs.parent / "manual")
    report = ingestor.ingest_paths([there])
    assert (report.renamed, report.added, report.updated, report.unchanged) == (3, 0, 0, 0)
    assert (report.chunks, embedder.texts, report.problems) == (0, [], [])
    assert everything(catalog, embedder) == held
    after = by_path(catalog)
    assert {path.replace("/manual/", "/docs/"): info.document_id for path, info in after.items()} \
        == {path: info.document_id for path, info in before.items()}  # fmt: skip
    assert ingestor.ingest_paths([there]).unchanged == 3


def test_a_renamed_file_with_a_title_of_its_own_keeps_everything(
    ingestor: Ingestor, catalog: Catalog, embedder: Any, docs: Path
) -> None:
    ingestor.ingest_paths([docs / "guide.md"])
    held = everything(catalog, embedder)
    there = (docs / "guide.md").rename(docs / "foxes.md")
    report = ingestor.ingest_paths([there])
    assert (report.renamed, report.added) == (1, 0)
    assert everything(catalog, embedder) == held
    (info,) = catalog.documents("public", "default")
    assert (info.name, info.path, info.title) == ("foxes.md", str(there), "Foxes")


def test_a_file_titled_by_its_name_is_titled_by_the_new_one(
    ingestor: Ingestor, catalog: Catalog, docs: Path
) -> None:
    """Its name is prompted and searched with every passage, so these are made anew."""
    ingestor.ingest_paths([docs / "a"])
    (before,) = catalog.documents("public", "default")
    (docs / "a" / "LICENSE.txt").rename(docs / "a" / "COPYING.txt")
    report = ingestor.ingest_paths([docs / "a"])
    assert (report.renamed, report.added, report.updated) == (1, 0, 0)
    (info,) = catalog.documents("public", "default")
    assert (info.document_id, info.title) == (before.document_id, "COPYING.txt")
    assert {chunk.title for chunk in catalog.chunks("public", "default")} == {"COPYING.txt"}


def test_a_new_suffix_is_another_reader(ingestor: Ingestor, catalog: Catalog, docs: Path) -> None:
    ingestor.ingest_paths([docs / "guide.md"])
    ingestor.ingest_paths([(docs / "guide.md").rename(docs / "guide.txt")])
    (info,) = catalog.documents("public", "default")
    stored = catalog.document("public", "default", info.document_id)
    assert stored is not None and stored.document.kind == "plain"


def test_a_copy_is_another_document(ingestor: Ingestor, catalog: Catalog, docs: Path) -> None:
    ingestor.ingest_paths([docs])
    shutil.copytree(docs, docs.parent / "copy")
    assert ingestor.ingest_paths([docs.parent]).added == 3
    assert len(by_path(catalog)) == 6


def test_what_takes_the_place_of_a_moved_file_is_a_new_document(
    ingestor: Ingestor, catalog: Catalog, docs: Path, texts: Any
) -> None:
    old = docs / "guide.md"
    ingestor.ingest_paths([old])
    there = old.rename(docs / "moved.md")
    for number in range(2):  # the second time around the ids of both are taken
        ingestor.ingest_paths([docs / "moved.md"])
        old.write_text(f"# Dogs {number}\n\nA lazy dog.")
        ingestor.ingest_paths([old])
        there = old.rename(docs / f"moved-{number}.md")
        ingestor.ingest_paths([there])
    assert set(by_path(catalog)) == {str(docs / f"moved{n}.md") for n in ("", "-0", "-1")}
    assert len({info.document_id for info in by_path(catalog).values()}) == 3
    assert ingestor.ingest_paths([docs]).unchanged == 3


def test_swapped_files_are_updated_where_they_are(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path
) -> None:
    one, two = tmp_path / "1.md", tmp_path / "2.md"
    one.write_text("# One\n\nA lazy dog.")
    two.write_text("# Two\n\nA quick fox.")
    ingestor.ingest_paths([tmp_path])
    one.rename(tmp_path / "x")
    two.rename(one)
    (tmp_path / "x").rename(two)
    assert ingestor.ingest_paths([tmp_path]).updated == 2
    assert {path[-4:]: info.title for path, info in by_path(catalog).items()} == {
        "1.md": "Two", "2.md": "One",
    }  # fmt: skip


def test_a_file_behind_a_closed_door_has_not_vanished(
    ingestor: Ingestor, catalog: Catalog, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.ingest_paths([docs / "a"])
    shutil.copytree(docs / "a", docs / "copy")

    def denied(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "lstat", denied)
    assert ingestor.ingest_paths([docs / "copy"]).added == 1


def test_another_tenant_s_and_another_collection_s_files_are_not_taken(
    ingestor: Ingestor, catalog: Catalog, docs: Path
) -> None:
    own = catalog.create_collection("public", "own").id
    ingestor.ingest_paths([docs], tenant="other")
    ingestor.ingest_paths([docs], collection=own)
    there = docs.rename(docs.parent / "manual")
    assert ingestor.ingest_paths([there]).added == 3
    assert ingestor.ingest_paths([there], collection=own).renamed == 3
    assert all("/docs/" in info.path for info in catalog.documents("other", "default"))


def test_names_of_any_bytes_are_told_apart(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path
) -> None:
    names = [b"by\xffte.txt", rb"by\udcffte.txt"]
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("A lazy dog.")
    assert ingestor.ingest_paths([folder]).added == 2
    assert ingestor.ingest_paths([folder]).unchanged == 2
    moved = folder.rename(tmp_path / "elsewhere")
    assert ingestor.ingest_paths([moved]).renamed == 2


def test_a_catalog_from_before_paths_were_kept_learns_them(
    ingestor: Ingestor, catalog: Catalog, docs: Path, tmp_path: Path, put: Any
) -> None:
    path = tmp_path / "old" / "catalog.sqlite"
    path.parent.mkdir()
    sha256 = "of the content"
    with sqlite3.connect(path) as connection:
        connection.executescript(database._SCHEMA)
        connection.execute("INSERT INTO meta VALUES ('created_at', '1.0')")
        connection.execute(f"PRAGMA application_id = {database._APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO collections (key, tenant, id, name, created_at)"
            " VALUES (1, 'public', 'default', 'default', 1.0)"
        )
        connection.execute(
            "INSERT INTO documents (collection, document_id, title, url, sha256, size_bytes, kind,"
            " text, attributes, splitter, num_chunks, num_tokens, added_at)"
            " VALUES (1, ?, 'Foxes', '', ?, 9, 'plain', 'text', '{}', 's', 0, 0, 2.0)",
            (document_id_of("file", str(docs / "guide.md")), sha256),
        )
    connection.close()
    old = Catalog(path)
    (info,) = old.documents("public", "default")
    assert (info.title, info.path, info.name, info.problems) == ("Foxes", "", "", [])
    from chunkcache.retrieval.identity import document_of_file, reads_the_same

    found = document_of_file(old, "public", "default", docs / "guide.md", sha256)
    assert found == (info.document_id, False)
    assert reads_the_same(info, "guide.md")
    old.close()
    Catalog(path).close()  # the second opening finds nothing to do


# ---------------------------------------------------------------- former passages


def test_what_an_update_replaced_is_kept_for_links_until_they_end(
    tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chunkcache.retrieval.documents import passage_digest

    catalog = Catalog(tmp_path / "c.sqlite", keep_former_s=100.0)
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    put(catalog, numbers=(0, 1))
    put(catalog, numbers=(1, 2))

    def former(text: str, **other: str) -> str | None:
        where = {"tenant": "t", "collection": "default", "document_id": "doc-a", **other}
        return catalog.former_passage(**where, digest=passage_digest(text))

    assert former("text 0") == "text 0"
    assert former("text 1") is None and former("text 2") is None  # it still has them
    assert former("text 0", document_id="doc-b") is None
    assert former("text 0", tenant="other") is None
    now += 99.0
    put(catalog, "doc-b")
    assert former("text 0") == "text 0"
    now += 2.0
    put(catalog, "doc-b")
    assert former("text 0") is None
    put(catalog, numbers=(3,))
    assert former("text 1") == "text 1"
    catalog.remove_document("doc-a", "t", "default")
    put(catalog, numbers=(3,))
    assert former("text 1") is None  # nothing of a removed document is shown
    catalog.close()


def test_what_was_replaced_does_not_outlive_its_time_because_the_clock_was_set_back(
    tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chunkcache.retrieval.documents import passage_digest

    catalog = Catalog(tmp_path / "c.sqlite", keep_former_s=100.0)
    now = 1e9 + 3600.0
    monkeypatch.setattr("time.time", lambda: now)
    put(catalog, numbers=(0, 1))
    put(catalog, numbers=(1, 2))
    which = ("t", "default", "doc-a", passage_digest("text 0"))
    now -= 3600.0
    put(catalog, "doc-b")
    assert catalog.former_passage(*which) == "text 0"
    now += 101.0
    put(catalog, "doc-b")
    assert catalog.former_passage(*which) is None
    catalog.close()
