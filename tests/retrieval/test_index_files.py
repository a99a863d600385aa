"""Index files: saved, loaded, brought level, rebuilt, cleared away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import NotFound
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.retriever import Retriever
from chunkcache_indexes.index_file import PARTIAL_SUFFIX
from chunkcache_indexes.lexical import LexicalIndex

if TYPE_CHECKING:
    from chunkcache.retrieval.ingest import Ingestor


def found(retriever: Retriever, query: str, top_k: int = 3, **where: str) -> list[str]:
    return [chunk.title for chunk in retriever.search(query, top_k=top_k, **where)]


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_a_saved_index_is_loaded_and_brought_up_to_date(
    ingestor: Ingestor,
    make_retriever: Any,
    catalog: Catalog,
    tmp_path: Path,
    index: str,
    monkeypatch: pytest.MonkeyPatch,
    fill: Any,
    big: Any,
    index_files: Any,
    topics: Any,
) -> None:
    big(ingestor)
    assert make_retriever(index=index).search("note 41", top_k=1)[0].text.startswith("note 41 ")
    assert len(index_files(tmp_path)) == 2
    fill(ingestor)
    read: list[int] = []
    real = type(catalog.entries).read

    def counted(self: Any, entries: Any, space: str) -> Any:
        read.append(len(entries))
        return real(self, entries, space)

    monkeypatch.setattr("chunkcache.retrieval.entries.EntryTable.read", counted)
    again = make_retriever(index=index)
    assert found(again, "lazy dog", 1) == ["dog.txt"]
    assert again.search("note 41", top_k=1)[0].text.startswith("note 41 ")
    assert read == [len(topics)]


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:-1]])
def test_damaged_index_files_are_rebuilt_with_a_warning(
    ingestor: Ingestor,
    make_retriever: Any,
    tmp_path: Path,
    logged: list[Any],
    damage: Any,
    big: Any,
    index_files: Any,
) -> None:
    big(ingestor)
    expected = make_retriever().search("note 41 topic3", top_k=5)
    for path in index_files(tmp_path):
        path.write_bytes(damage(path.read_bytes()))
    assert make_retriever().search("note 41 topic3", top_k=5) == expected
    assert [entry["event"] for entry in logged] == ["index_rebuilt"] * 2
    logged.clear()
    make_retriever().search("note 41", top_k=1)
    assert logged == []


def test_an_index_that_is_ahead_of_the_catalog_is_brought_back(
    ingestor: Ingestor,
    make_retriever: Any,
    catalog: Catalog,
    tmp_path: Path,
    fill: Any,
    big: Any,
    index_files: Any,
    topics: Any,
) -> None:
    """As after the catalog was restored from an older backup."""
    fill(ingestor)
    backup = tmp_path / "backup"
    with catalog._database.reading() as connection:
        connection.execute("ROLLBACK")
        connection.execute("VACUUM INTO ?", (str(backup),))
        connection.execute("BEGIN")
    big(ingestor)
    make_retriever().search("note 41", top_k=1)
    assert index_files(tmp_path)
    restored = Catalog(backup)
    retriever = make_retriever()
    retriever._catalog = restored
    assert {c.title for c in retriever.search("note 41 lazy dog", top_k=64)} == set(topics)
    restored.close()


def test_an_index_that_cannot_be_saved_still_serves(
    ingestor: Ingestor, retriever: Retriever, tmp_path: Path, logged: list[Any], big: Any
) -> None:
    (tmp_path / "home" / "indexes").write_text("a file where the folder should be")
    big(ingestor)
    assert retriever.search("note 41", top_k=1)[0].text.startswith("note 41 ")
    assert [entry["event"] for entry in logged] == ["index_not_saved"] * 2


def test_files_of_another_embedder_or_kind_are_not_used_and_go(
    ingestor: Ingestor, make_retriever: Any, tmp_path: Path, big: Any, index_files: Any
) -> None:
    big(ingestor)
    make_retriever().search("note 41", top_k=1)
    flat = index_files(tmp_path)
    make_retriever(index="hnsw").search("note 41", top_k=1)
    assert len(index_files(tmp_path)) == 2
    assert len(set(flat) & set(index_files(tmp_path))) == 1  # the lexical one


def test_deleting_a_collection_drops_its_index_files(
    ingestor: Ingestor,
    retriever: Retriever,
    catalog: Catalog,
    tmp_path: Path,
    big: Any,
    index_files: Any,
) -> None:
    own = catalog.create_collection("public", "own").id
    big(ingestor, collection=own)
    big(ingestor)
    for collection in (own, "default"):
        retriever.search("note 41", top_k=1, collection=collection)
    assert len(index_files(tmp_path)) == 4
    catalog.delete_collection("public", own)
    assert len(index_files(tmp_path)) == 2
    with pytest.raises(NotFound):
        retriever.search("note 41", top_k=1, collection=own)
    catalog.delete_tenant("public")
    assert index_files(tmp_path) == []
    assert retriever.search("note 41", top_k=1) == []
    assert list((tmp_path / "home" / "indexes").iterdir()) == []


def test_a_collection_deleted_during_a_save_leaves_no_files(
    ingestor: Ingestor,
    retriever: Retriever,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: Any,
    big: Any,
    index_files: Any,
) -> None:
    own = catalog.create_collection("public", "own").id
    big(ingestor, collection=own)
    real = LexicalIndex.save

    def delete_then_save(self: Any, path: Path) -> None:
        catalog.delete_collection("public", own)
        real(self, path)

    monkeypatch.setattr(LexicalIndex, "save", delete_then_save)
    with pytest.raises(NotFound):
        retriever.search("note 41", top_k=1, collection=own)
    assert index_files(tmp_path) == []


def test_index_files_of_collections_that_are_gone_are_swept_at_start(
    ingestor: Ingestor,
    make_retriever: Any,
    catalog: Catalog,
    tmp_path: Path,
    big: Any,
    index_files: Any,
) -> None:
    big(ingestor)
    make_retriever().search("note 41", top_k=1)
    orphan = tmp_path / "home" / "indexes" / "0000-vs_gone"
    orphan.mkdir()
    (orphan / "vectors-flat-x.idx").write_text("x")
    make_retriever()
    assert not orphan.exists()
    assert len(index_files(tmp_path)) == 2


def test_what_a_killed_process_left_half_written_is_swept(
    ingestor: Ingestor, make_retriever: Any, tmp_path: Path, big: Any, index_files: Any
) -> None:
    big(ingestor)
    make_retriever().search("note 41", top_k=1)
    folder = index_files(tmp_path)[0].parent
    for name, age_s in {"old.idx.1.partial": 7200, "fresh.idx.2.partial": 0}.items():
        (folder / name).write_text("x")
        now = (folder / name).stat().st_mtime
        os.utime(folder / name, (now - age_s, now - age_s))
    make_retriever().search("note 41", top_k=1)
    assert [path.name for path in folder.glob("*.partial")] == ["fresh.idx.2.partial"]


def test_only_so_many_indexes_are_held_in_memory(
    ingestor: Ingestor, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.retriever.OPEN_COLLECTIONS", 2)
    for tenant in ("a", "b", "c"):
        ingestor.ingest_bytes("x.txt", f"the dog of {tenant}".encode(), tenant=tenant)
    for tenant in ("a", "b", "c", "a"):
        (chunk,) = retriever.search("dog", top_k=3, tenant=tenant)
        assert chunk.text.endswith(tenant)
        assert len(retriever._open) <= 2


def test_preparing_takes_free_places_and_lets_nothing_go(
    ingestor: Ingestor, retriever: Retriever, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.retriever.OPEN_COLLECTIONS", 2)
    for tenant in ("a", "b", "c"):
        ingestor.ingest_bytes("x.txt", f"the dog of {tenant}".encode(), tenant=tenant)
    retriever.search("dog", top_k=3, tenant="a")
    for tenant in ("b", "c"):
        retriever.prepare(tenant, "default")
    held = dict(retriever._open)
    assert {tenant for tenant, _ in held} == {"a", "b"}
    ingestor.ingest_bytes("y.txt", b"a cat", tenant="a")
    retriever.prepare("a", "default")  # it is open: nothing else is
    assert dict(retriever._open) == held
    assert held["a", "default"].generation == catalog.generation("a", "default")
    retriever.search("dog", top_k=3, tenant="c")  # in place of what nobody searched
    assert {tenant for tenant, _ in retriever._open} == {"a", "c"}


def test_a_collection_that_was_deleted_takes_no_place(
    ingestor: Ingestor, retriever: Retriever, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.retriever.OPEN_COLLECTIONS", 1)
    ids = [catalog.create_collection("public", name).id for name in ("a", "b")]
    for collection in ids:
        ingestor.ingest_bytes("x.txt", b"the dog", collection=collection)
    retriever.prepare("public", ids[0])
    catalog.delete_collection("public", ids[0])
    retriever.prepare("public", ids[1])
    assert list(retriever._open) == [("public", ids[1])]


def test_a_build_that_is_killed_anywhere_leaves_what_the_next_start_goes_on_from(
    ingestor: Ingestor,
    make_retriever: Any,
    catalog: Catalog,
    embedder: Any,
    tmp_path: Path,
    big: Any,
    logged: list[Any],
) -> None:
    """kill -9 at each sync of the files: before and after they get their names."""
    big(ingestor)
    queries = ["note 41 topic3", "about topic5", "note 7"]
    expected = [make_retriever(mode="hybrid").search(query, top_k=20) for query in queries]
    homes = [tmp_path / f"home{n}" for n in range(5)]
    for home in homes:
        home.mkdir()
        with catalog._database.reading() as connection:
            connection.execute("ROLLBACK")
            connection.execute("VACUUM INTO ?", (str(home / "catalog.sqlite"),))
            connection.execute("BEGIN")
    child = Path(__file__).parent.parent / "crash" / "index_child.py"
    told = subprocess.run(
        [sys.executable, str(child), *map(str, homes)], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["-9"] * 4 + ["0"], told.stderr
    held = [sorted(path.suffix for path in (h / "indexes").rglob("*.*")) for h in homes]
    assert held == [[".partial"], [".idx"], [".idx", ".partial"], [".idx"] * 2, [".idx"] * 2]
    for home in homes:
        copy = Catalog(home / "catalog.sqlite")
        retriever = Retriever(copy, embedder, home / "indexes", make_retriever()._settings)
        assert [retriever.search(query, top_k=20) for query in queries] == expected
        copy.close()
    assert [entry for entry in logged if entry["event"] != "embedder_prompts"] == []


def test_who_only_reads_leaves_every_file_as_it_is(
    ingestor: Ingestor, make_retriever: Any, catalog: Catalog, tmp_path: Path,
    fill: Any, big: Any, index_files: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fill(ingestor)
    assert found(make_retriever(), "lazy dog", 1) == ["dog.txt"]
    saved = make_retriever()
    big(ingestor)
    found(saved, "note 41", 1)
    first, _ = index_files(tmp_path)
    first.write_bytes(b"damaged")  # to be made anew, in memory
    leftovers = [
        first.with_name(f"killed{PARTIAL_SUFFIX}"), first.parent.parent / "gone-vs_1" / first.name
    ]  # fmt: skip
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left")
        os.utime(path, (0, 0))
    folder = first.parent.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(Catalog, "note_index_folder", None)  # not to be called
    reading = make_retriever(saves=False)
    assert reading.search("note 41", top_k=1)[0].text.startswith("note 41 ")
    assert found(reading, "lazy dog", 1) == ["dog.txt"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
