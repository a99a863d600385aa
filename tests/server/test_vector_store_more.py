"""Vector stores through the OpenAI client: labels, expiry, batches, contents, filters."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest

from chunkcache.protocol import CollectionInfo

BINARY = b"\xff\xfe\x00"
DAYS = {"anchor": "last_active_at", "days": 2}


def add_file(served: Any, name: str, content: bytes) -> str:
    made = served.client().files.create(file=(name, content), purpose="assistants")
    return str(made.id)


def test_a_store_keeps_labels_and_expiry(served: Any) -> None:
    client = served.client()
    made = client.vector_stores.create(
        name="a", metadata={"team": "search"}, expires_after=DAYS,
        chunking_strategy={"type": "auto"},
    )  # fmt: skip
    assert made.metadata == {"team": "search"} and made.expires_after.days == 2
    assert made.expires_at == pytest.approx(made.last_active_at + 2 * 86_400, abs=1)
    renamed = client.vector_stores.update(made.id, name="b")
    assert (renamed.name, renamed.metadata, renamed.expires_after.days) == ("b", made.metadata, 2)
    changed = client.vector_stores.update(made.id, metadata={}, expires_after=None)
    assert (changed.metadata, changed.expires_after, changed.expires_at) == ({}, None, None)
    assert changed.status == "completed" and client.vector_stores.retrieve(made.id) == changed


def test_an_expired_store_says_so(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = served.client()
    store = client.vector_stores.create(expires_after=DAYS)
    past = property(lambda _: time.time() - 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(CollectionInfo, "expires_at", past)
        assert client.vector_stores.retrieve(store.id).status == "expired"
    assert client.vector_stores.retrieve(store.id).status == "completed"


def test_several_files_at_once(served: Any) -> None:
    client = served.client()
    store = client.vector_stores.create()
    names = [("cats.txt", b"the cat"), ("dogs.txt", b"the dog"), ("x.bin", BINARY)]
    ids = [add_file(served, *each) for each in names]
    batch = client.vector_stores.file_batches.create_and_poll(
        store.id, file_ids=[*ids, ids[0]], attributes={"kind": "pet"}
    )
    counts = batch.file_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
    assert client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id) == batch
    assert client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id) == batch
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert {f.id for f in listed} == set(ids)
    assert {str(f.attributes) for f in listed} == {"{'kind': 'pet'}"}
    (failed,) = client.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, filter="failed"
    )
    assert failed.id == ids[2] and "not text" in failed.last_error.message
    (also,) = client.vector_stores.files.list(store.id, filter="failed")
    assert also.id == ids[2]
    for file_id in ids:
        client.vector_stores.files.delete(file_id, vector_store_id=store.id)
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)


def test_the_official_batch_upload(served: Any) -> None:
    client = served.client()
    done = client.vector_stores.file_batches.upload_and_poll(
        "default", files=[("a.txt", b"a cat"), ("b.txt", b"a dog")]
    )
    assert (done.status, done.file_counts.completed) == ("completed", 2)


def test_a_batch_with_an_unknown_file_attaches_nothing(served: Any) -> None:
    client = served.client()
    known = add_file(served, "a.txt", b"a cat")
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.file_batches.create("default", file_ids=[known, "file-none"])
    assert list(client.vector_stores.files.list("default")) == []


def test_each_file_of_a_batch_with_labels_of_its_own(served: Any) -> None:
    client = served.client()
    ids = [add_file(served, f"{i}.txt", b"cat %d" % i) for i in range(2)]
    client.vector_stores.file_batches.create(
        "default", files=[{"file_id": one, "attributes": {"n": i}} for i, one in enumerate(ids)]
    )
    found = {f.id: f.attributes for f in client.vector_stores.files.list("default")}
    assert found == {ids[0]: {"n": 0.0}, ids[1]: {"n": 1.0}}


def test_contents_come_back(served: Any) -> None:
    client = served.client()
    file_id = add_file(served, "cats.txt", "the cät".encode())
    assert client.files.content(file_id).read() == "the cät".encode()
    client.vector_stores.files.create("default", file_id=file_id)
    (part,) = client.vector_stores.files.content(file_id, vector_store_id="default")
    assert part.text == "the cät"
    unread = add_file(served, "x.bin", BINARY)
    client.vector_stores.files.create("default", file_id=unread)
    with pytest.raises(openai.BadRequestError, match="not text"):
        client.vector_stores.files.content(unread, vector_store_id="default")


def test_attributes_filter_and_can_be_changed(served: Any) -> None:
    client = served.client()
    ids = [add_file(served, f"{name}.txt", b"the cat") for name in "ab"]
    for number, file_id in enumerate(ids):
        client.vector_stores.files.create("default", file_id=file_id, attributes={"n": number})

    def names(value: float) -> list[str]:
        wanted: Any = {"type": "gte", "key": "n", "value": value}
        hits = client.vector_stores.search("default", query="cat", filters=wanted)
        return sorted(hit.filename for hit in hits)

    assert (names(0), names(1), names(2)) == (["a.txt", "b.txt"], ["b.txt"], [])
    changed = client.vector_stores.files.update(
        ids[0], vector_store_id="default", attributes={"n": 5}
    )
    assert changed.attributes == {"n": 5.0}
    assert (names(1), names(5)) == (["a.txt", "b.txt"], ["a.txt"])
    client.vector_stores.files.update(ids[0], vector_store_id="default", attributes=None)
    assert names(0) == ["b.txt"]


def test_a_document_without_an_upload_has_attributes_too(served: Any) -> None:
    info = served.service.ingest_bytes(
        "b.txt", b"a bat", tenant="public", collection="default", attributes={"n": 1}
    )
    client = served.client()
    (file,) = client.vector_stores.files.list("default")
    assert file.attributes == {"n": 1}
    client.vector_stores.files.update(
        info.document_id, vector_store_id="default", attributes={"n": 2}
    )
    (file,) = client.vector_stores.files.list("default")
    assert file.attributes == {"n": 2.0}


def test_several_queries_are_one_ranking(served: Any) -> None:
    client = served.client()
    for name, text in (("cats.txt", b"the cat sat"), ("dogs.txt", b"a dog ran far")):
        client.vector_stores.files.create("default", file_id=add_file(served, name, text))
    hits: Any = client.vector_stores.search("default", query=["cat", "a dog ran", "the sat"])
    assert [(hit.filename, hit.score) for hit in hits] == [("dogs.txt", 3.0), ("cats.txt", 2.0)]
    both: Any = client.vector_stores.search(
        "default", query=["cat", "dog"], max_num_results=1, ranking_options={"ranker": "auto"}
    )
    assert len(list(both)) == 1
