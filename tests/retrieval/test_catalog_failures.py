"""Failed changes, damaged files, full disks, many threads."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from chunkcache.errors import ShuttingDown, StoreError
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import Document, DocumentKind

if TYPE_CHECKING:
    from pathlib import Path

SPACE = "space one"


def test_a_failed_change_leaves_the_old_document_whole(
    catalog: Catalog, chunk: Any, put: Any
) -> None:
    put(catalog)
    wrong = [replace(chunk(0), text=None), chunk(1)]  # type: ignore[arg-type]
    document = Document("doc-a", "new", "", "bb", 1, DocumentKind.PLAIN, "new")
    with pytest.raises(sqlite3.IntegrityError):
        catalog.put_document(
            "t", "default", document, wrong, np.ones((2, 3)), splitter="s1", space=SPACE
        )
    assert [info.title for info in catalog.documents("t", "default")] == ["A title"]
    assert list(catalog.chunks("t", "default")) == [chunk(n) for n in range(3)]
    put(catalog, "doc-b")  # the writer is usable


def test_too_few_vectors_are_a_programming_error_that_changes_nothing(
    catalog: Catalog, chunk: Any
) -> None:
    document = Document("doc-a", "new", "", "bb", 1, DocumentKind.PLAIN, "new")
    with pytest.raises(ValueError, match="shorter"):
        catalog.put_document(
            "t", "default", document, [chunk(0), chunk(1)], np.ones((1, 3)),
            splitter="s1", space=SPACE,
        )  # fmt: skip
    assert catalog.documents("t", "default") == []


@pytest.mark.parametrize("replaced", [False, True])
def test_what_a_removed_file_cannot_keep_is_refused(
    tmp_path: Path, chunk: Any, put: Any, replaced: bool
) -> None:
    """As when a home is deleted, moved or restored under its service: it is read, not written."""
    path = tmp_path / "home" / "catalog.sqlite"
    catalog = Catalog(path)
    put(catalog)
    (tmp_path / "home").rename(tmp_path / "away")
    if replaced:
        Catalog(path).close()
    with pytest.raises(StoreError, match="another file now" if replaced else "lost its file"):
        put(catalog, "doc-b")
    assert list(catalog.chunks("t", "default")) == [chunk(n) for n in range(3)]
    with catalog._database.reading(), pytest.raises(StoreError, match="file"):
        catalog.documents("t", "default")  # over a second connection, which leads elsewhere
    assert path.exists() == replaced
    catalog.close()
    with closing(Catalog(tmp_path / "away" / "catalog.sqlite")) as again:
        assert [info.document_id for info in again.documents("t", "default")] == ["doc-a"]


def test_a_catalog_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    Catalog(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"schema version 99.*upgrade chunkcache"):
        Catalog(path)


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError, match="another program's database"):
        Catalog(path)


@pytest.mark.parametrize("data", [b"this is no database at all, only text" * 50, b"\0" * 5000])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(data)
    with pytest.raises(StoreError, match="damaged or no catalog"):
        Catalog(tmp_path / "catalog.sqlite")


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot make"):
        Catalog(tmp_path / "file" / "catalog.sqlite")


def test_damage_inside_the_file_is_a_store_error(tmp_path: Path, put: Any) -> None:
    path = tmp_path / "catalog.sqlite"
    catalog = Catalog(path)
    put(catalog, numbers=range(2000))
    catalog.close()
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(bytes(data))
    catalog = Catalog(path)
    with pytest.raises(StoreError, match="damaged"):
        list(catalog.chunks("t", "default"))
    catalog.close()


def test_a_full_disk_is_a_store_error_and_the_catalog_goes_on(tmp_path: Path, put: Any) -> None:
    catalog = Catalog(tmp_path / "catalog.sqlite")
    put(catalog)
    with catalog._database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (connection,) = catalog._database._idle  # the writer takes the same one
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match=r"full.*free space"):
        put(catalog, "doc-b", range(5000))
    assert [info.document_id for info in catalog.documents("t", "default")] == ["doc-a"]
    connection.execute("PRAGMA max_page_count = 100000")
    put(catalog, "doc-b", range(50))
    catalog.close()


def test_a_closed_catalog_says_so_and_closes_twice(catalog: Catalog) -> None:
    chunks = catalog.chunks("t", "default")
    catalog.close()
    catalog.close()
    with pytest.raises(ShuttingDown):
        catalog.documents("t", "default")
    with pytest.raises(ShuttingDown):
        list(chunks)


def test_after_a_fork_the_child_is_told_to_open_its_own(catalog: Catalog) -> None:
    real, catalog._database._pid = catalog._database._pid, os.getpid() + 1
    with pytest.raises(StoreError, match="opened before a fork"):
        catalog.documents("t", "default")
    catalog._database._pid = real


def test_threads_write_and_read_side_by_side(catalog: Catalog, put: Any) -> None:
    """A reader sees a document with all its chunks or not at all, whatever the writers do."""
    failures: list[BaseException] = []
    stop = threading.Event()

    def write(name: str) -> None:
        try:
            for n in range(12):
                put(catalog, f"doc-{name}", range(3 + n % 4), sha256=str(n))
                if n % 5 == 4:
                    catalog.remove_document(f"doc-{name}", "t", "default")
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        try:
            while not stop.is_set():
                for info in catalog.documents("t", "default"):
                    assert info.num_chunks >= 3
                generation, entries = catalog.entries.all("t", "default")
                assert generation >= 0 and len(entries) == len(set(entries.tolist()))
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in [*writers, *readers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert failures == []
    counts = {info.document_id: info.num_chunks for info in catalog.documents("t", "default")}
    assert counts == {f"doc-{name}": 6 for name in "abc"}
    assert len(list(catalog.chunks("t", "default"))) == 18
