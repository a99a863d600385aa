"""One document per file in a vector store, and what that means for the files."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest

from chunkcache.server.files import Attachment


@pytest.fixture
def client(served: Any) -> Any:
    return served.client()


def attach(client: Any, name: str, content: bytes, store: str = "default") -> str:
    file = client.files.create(file=(name, content), purpose="assistants")
    assert client.vector_stores.files.create(store, file_id=file.id).status == "completed"
    return str(file.id)


def in_store(client: Any, store: str = "default") -> list[str]:
    return [file.id for file in client.vector_stores.files.list(store, order="asc")]


def texts(client: Any, store: str = "default") -> list[str]:
    return [hit.content[0].text for hit in client.vector_stores.search(store, query="cat")]


def test_two_files_of_one_name_are_two_documents(client: Any) -> None:
    older, newer = attach(client, "a.txt", b"old cat"), attach(client, "a.txt", b"new cat")
    assert in_store(client) == [older, newer]
    assert sorted(texts(client)) == ["new cat", "old cat"]
    assert client.vector_stores.retrieve("default").file_counts.total == 2
    client.files.delete(older)
    assert texts(client) == ["new cat"] and in_store(client) == [newer]
    client.files.delete(newer)
    assert texts(client) == []


def test_attaching_a_file_again_changes_nothing(client: Any) -> None:
    file_id = attach(client, "a.txt", b"a cat")
    client.vector_stores.files.create("default", file_id=file_id)
    assert texts(client) == ["a cat"] and in_store(client) == [file_id]


def test_two_files_of_one_name_and_content_are_two_documents(client: Any) -> None:
    one, two = attach(client, "a.txt", b"a cat"), attach(client, "a.txt", b"a cat")
    assert in_store(client) == [one, two]
    assert client.vector_stores.retrieve("default").usage_bytes == 10
    client.vector_stores.files.delete(one, vector_store_id="default")
    assert texts(client) == ["a cat"] and in_store(client) == [two]


def by_name(served: Any, client: Any, name: str, content: bytes) -> str:
    """A file attached as older versions did: its document goes by its name."""
    file = client.files.create(file=(name, content), purpose="assistants")
    info = served.service.ingest_bytes(name, content, tenant="public", collection="default")
    served.app.state.shelf.attach(
        "public", file.id, "default", Attachment(created_at=time.time(), document=info)
    )
    return str(file.id)


def test_a_document_that_goes_by_its_name_is_replaced_when_its_file_is_attached_again(
    served: Any, client: Any
) -> None:
    file_id = by_name(served, client, "a.txt", b"a cat")
    client.vector_stores.files.create("default", file_id=file_id)
    assert texts(client) == ["a cat"] and in_store(client) == [file_id]
    client.files.delete(file_id)
    assert texts(client) == []


def test_a_document_two_files_of_older_versions_stand_for_goes_with_the_last(
    served: Any, client: Any
) -> None:
    one, two = (by_name(served, client, "a.txt", b"a cat") for _ in range(2))
    client.vector_stores.files.delete(one, vector_store_id="default")
    assert texts(client) == ["a cat"]
    client.files.delete(two)
    assert texts(client) == []


def test_files_of_the_same_content_under_two_names_are_two(client: Any) -> None:
    one, two = attach(client, "a/x.txt", b"a cat"), attach(client, "b/x.txt", b"a cat")
    client.files.delete(one)
    assert in_store(client) == [two] and texts(client) == ["a cat"]


def test_deleting_a_file_removes_it_from_every_store(client: Any) -> None:
    store = client.vector_stores.create()
    file_id = attach(client, "a.txt", b"a cat")
    client.vector_stores.files.create(store.id, file_id=file_id)
    gone = client.vector_stores.create(file_ids=[file_id])
    client.vector_stores.delete(gone.id)
    client.files.delete(file_id)
    assert texts(client) == texts(client, store.id) == []


def test_a_store_that_vanished_otherwise_does_not_keep_its_files_alive(
    served: Any, client: Any
) -> None:
    store = client.vector_stores.create()
    file_id = attach(client, "a.txt", b"a cat", store.id)
    served.service.delete_collection(store.id, tenant="public")
    assert client.files.delete(file_id).deleted


def test_a_document_removed_otherwise_is_no_longer_listed(served: Any, client: Any) -> None:
    attach(client, "a.txt", b"a cat")
    (document,) = served.service.documents(tenant="public", collection="default")
    served.service.remove(document.document_id, tenant="public", collection="default")
    assert in_store(client) == []
    assert client.vector_stores.retrieve("default").file_counts.total == 0


def test_a_document_that_something_else_replaced_outlives_the_file(
    served: Any, client: Any
) -> None:
    older = by_name(served, client, "a.txt", b"old cat")
    served.service.ingest_bytes("a.txt", b"new cat", tenant="public", collection="default")
    client.files.delete(older)
    assert texts(client) == ["new cat"]


def test_a_full_disk_leaves_no_document_that_no_file_names(
    served: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = client.files.create(file=("a.txt", b"a cat"), purpose="assistants")

    def fail(path: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("chunkcache.server.files.write_durably", fail)
        with pytest.raises(openai.InternalServerError, match="No space left"):
            client.vector_stores.files.create("default", file_id=file.id)
    assert served.service.documents(tenant="public", collection="default") == []
    assert in_store(client) == []
    assert client.vector_stores.files.create("default", file_id=file.id).status == "completed"


def test_a_file_deleted_while_it_is_ingested_leaves_no_document(
    served: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = client.files.create(file=("a.txt", b"a cat"), purpose="assistants")
    ingest = served.service.ingest_bytes

    def ingest_then_lose_the_file(*args: Any, **named: Any) -> Any:
        info = ingest(*args, **named)
        served.app.state.shelf.delete("public", file.id)
        return info

    monkeypatch.setattr(served.service, "ingest_bytes", ingest_then_lose_the_file)
    with pytest.raises(Exception, match="No such file"):
        client.vector_stores.files.create("default", file_id=file.id)
    assert served.service.documents(tenant="public", collection="default") == []
