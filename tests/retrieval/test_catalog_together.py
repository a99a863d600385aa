"""Several changes as one: seen inside, by others only when they are whole."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import StoreError
from chunkcache.retrieval.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import Callable

WHERE = ("t", "default")


def ids(catalog: Catalog) -> list[str]:
    return sorted(info.document_id for info in catalog.documents(*WHERE))


def by_another(ask: Callable[[], Any]) -> Any:
    """What another thread is told."""
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(ask()))
    thread.start()
    thread.join(30)
    return told[0]


def test_changes_are_seen_inside_at_once_and_by_others_at_the_end(
    catalog: Catalog, put: Any
) -> None:
    put(catalog)
    with catalog.together():
        put(catalog, "doc-b")
        put(catalog, "doc-c")
        assert catalog.remove_document("doc-a", *WHERE)
        assert ids(catalog) == ["doc-b", "doc-c"]
        assert by_another(lambda: ids(catalog)) == ["doc-a"]
    assert ids(catalog) == by_another(lambda: ids(catalog)) == ["doc-b", "doc-c"]


def test_all_of_it_is_undone_when_it_ends_with_an_error(catalog: Catalog, put: Any) -> None:
    put(catalog)
    generation = catalog.generation(*WHERE)
    with pytest.raises(StoreError, match="gone"), catalog.together():
        put(catalog, "doc-b")
        raise StoreError("the disk is gone")
    assert ids(catalog) == ["doc-a"] and catalog.generation(*WHERE) == generation
    put(catalog, "doc-c")  # the writer is usable, and no transaction is left open
    assert by_another(lambda: ids(catalog)) == ["doc-a", "doc-c"]


def test_one_change_that_fails_inside_leaves_the_others(
    catalog: Catalog, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise ValueError("no")

    with catalog.together():
        put(catalog, "doc-a")
        with monkeypatch.context() as patched, pytest.raises(ValueError, match="no"):
            patched.setattr("chunkcache.retrieval.catalog_sql.put_vectors", failing)
            put(catalog, "doc-b")  # its row and its chunks are written by then
        put(catalog, "doc-c")
    assert ids(catalog) == ["doc-a", "doc-c"]
    assert {chunk.document_id for chunk in catalog.chunks(*WHERE)} == {"doc-a", "doc-c"}


def test_a_full_disk_in_the_middle_leaves_what_was_before(catalog: Catalog, put: Any) -> None:
    put(catalog)
    with pytest.raises(StoreError, match="full"), catalog.together():
        with catalog._database.writing() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        for number in range(100):
            put(catalog, f"doc-{number}")
    assert ids(catalog) == ["doc-a"]


def test_two_threads_take_turns(catalog: Catalog, put: Any) -> None:
    """Each in a transaction of its own: neither gets into the other's."""
    inside = threading.Event()

    def other() -> None:
        inside.wait(30)
        put(catalog, "doc-b")

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(StoreError, match="gone"), catalog.together():
        put(catalog, "doc-a")
        inside.set()
        raise StoreError("the disk is gone")
    thread.join(30)
    assert ids(catalog) == ["doc-b"]
