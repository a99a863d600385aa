"""Vector stores through the OpenAI client: create, attach, list, search, delete."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from chunkcache.protocol import DocumentInfo, Passage

BINARY = b"\xff\xfe\x00"


def add_file(served: Any, name: str, content: bytes) -> str:
    made = served.client().files.create(file=(name, content), purpose="assistants")
    return str(made.id)


def test_a_store_from_files_is_ready_at_once(served: Any) -> None:
    client = served.client()
    files = [add_file(served, "cats.txt", b"the cat sat"), add_file(served, "x.bin", BINARY)]
    store = client.vector_stores.create(name="pets", file_ids=files)
    assert (store.name, store.status, store.usage_bytes) == ("pets", "completed", 11)
    counts = store.file_counts
    assert (counts.total, counts.completed, counts.failed, counts.in_progress) == (2, 1, 1, 0)
    assert client.vector_stores.retrieve(store.id) == store
    assert [s.id for s in client.vector_stores.list(order="asc")] == ["default", store.id]
    assert [s.id for s in client.vector_stores.list(limit=1)] == [store.id, "default"]


def test_a_store_needs_neither_name_nor_files(served: Any) -> None:
    store = served.client().vector_stores.create()
    assert (store.name, store.file_counts.total) == ("", 0)


def test_unknown_files_are_an_error_before_the_store_is_made(served: Any) -> None:
    client = served.client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.vector_stores.create(file_ids=[add_file(served, "a.txt", b"a"), "file-none"])
    assert caught.value.param == "file_id"
    assert [s.id for s in client.vector_stores.list()] == ["default"]


def test_the_official_upload_and_poll_ends_completed(served: Any) -> None:
    client = served.client()
    done = client.vector_stores.files.upload_and_poll(
        vector_store_id="default", file=("cats.txt", b"the cat sat"), attributes={"kind": "pet"}
    )
    assert (done.status, done.last_error, done.usage_bytes) == ("completed", None, 11)
    assert done.attributes == {"kind": "pet"}
    assert served.service.ingested == [("cats.txt", {"kind": "pet"})]
    document = DocumentInfo.model_validate(done.chunkcache["document"])
    assert (document.title, document.num_tokens) == ("cats.txt", 3)
    assert done.chunkcache["filename"] == "cats.txt"


def test_a_file_that_cannot_be_read_fails_with_the_reason(served: Any) -> None:
    client = served.client()
    file_id = add_file(served, "x.bin", BINARY)
    failed = client.vector_stores.files.create("default", file_id=file_id)
    assert failed.status == "failed" and failed.last_error.code == "invalid_file"
    assert "x.bin: not text" in failed.last_error.message
    assert client.vector_stores.files.retrieve(file_id, vector_store_id="default") == failed
    assert client.vector_stores.files.delete(file_id, vector_store_id="default").deleted


def test_files_of_a_store_are_listed_in_pages(served: Any) -> None:
    client = served.client()
    ids = [add_file(served, f"{i}.txt", b"cat %d" % i) for i in range(5)]
    store = client.vector_stores.create(file_ids=ids)
    listed = [file.id for file in client.vector_stores.files.list(store.id, limit=2, order="asc")]
    assert listed == ids
    after = client.vector_stores.files.list(store.id, after=ids[1], order="desc")
    assert [file.id for file in after] == [ids[0]]


def test_a_document_ingested_otherwise_goes_by_its_own_id(served: Any) -> None:
    info = served.service.ingest_bytes("b.txt", b"a bat", tenant="public", collection="default")
    client = served.client()
    (file,) = client.vector_stores.files.list("default")
    assert (file.id, file.status, file.chunkcache["filename"]) == (
        info.document_id, "completed", None,
    )  # fmt: skip
    (hit,) = client.vector_stores.search("default", query="bat")
    assert hit.file_id == info.document_id
    client.vector_stores.files.delete(info.document_id, vector_store_id="default")
    assert served.service.documents(tenant="public", collection="default") == []


def test_search_gives_passages_best_first(served: Any) -> None:
    client = served.client()
    store = client.vector_stores.create(
        file_ids=[add_file(served, "cats.txt", b"the cat sat on the mat"),
                  add_file(served, "dogs.txt", b"the dog ran")]
    )  # fmt: skip
    page = client.vector_stores.search(store.id, query="the cat", max_num_results=5)
    hits = list(page)
    assert [(hit.filename, hit.score) for hit in hits] == [("cats.txt", 2.0), ("dogs.txt", 1.0)]
    assert hits[0].content[0].text == "the cat sat on the mat"
    passage = Passage.model_validate(hits[0].chunkcache, extra="ignore")
    assert (passage.start_char, passage.end_char) == (0, 22)
    assert hits[0].chunkcache["num_chunks"] == 1
    assert len(list(client.vector_stores.search(store.id, query="the", max_num_results=1))) == 1
    assert list(client.vector_stores.search(store.id, query="zebra")) == []
    assert list(client.vector_stores.search("default", query="cat")) == []


def test_search_shows_attributes(served: Any) -> None:
    client = served.client()
    file_id = add_file(served, "cats.txt", b"the cat")
    attributes = {"kind": "pet", "legs": 4.0, "tame": True}
    client.vector_stores.files.create("default", file_id=file_id, attributes=attributes)
    (hit,) = client.vector_stores.search("default", query="cat")
    assert hit.attributes == attributes
    assert served.service.ingested == [("cats.txt", attributes)]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"name": "n", "metadata": {"a": 1}}, "metadata.a"),
        ("", {"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ("", {"metadata": {"k": "v" * 513}}, "metadata.k"),
        ("", {"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
        ("", {"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after.days"),
        ("", {"chunking_strategy": {"type": "static"}}, None),
        ("", {"chunking_strategy": {"type": "static", "static": {
            "max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}},
         "chunking_strategy.static"),
        ("/default", {"expires_after": {"anchor": "last_active_at", "days": 1}}, "expires_after"),
        ("/default", {"surname": "n"}, "surname"),
        ("/default/file_batches", {}, None),
        ("/default/file_batches", {"file_ids": []}, "file_ids"),
        ("/default/file_batches", {"file_ids": ["f"], "files": [{"file_id": "f"}]}, None),
        ("/default/file_batches", {"files": [{"file_id": "f"}], "attributes": {"a": 1}}, None),
        ("/default/file_batches",
         {"files": [{"file_id": "f"}, {"file_id": "f", "attributes": {"a": 1}}]}, None),
        ("/default/files/f", {}, "attributes"),
        ("", {"name": "x" * 257}, "name"),
        ("/default/files", {}, "file_id"),
        ("/default/files", {"file_id": "f", "attributes": {"k" * 65: 1}}, None),
        ("/default/files", {"file_id": "f", "attributes": {str(i): 1 for i in range(17)}},
         "attributes"),
        ("/default/search", {"query": ""}, "query"),
        ("/default/search", {"query": "  "}, "query"),
        ("/default/search", {"query": []}, None),
        ("/default/search", {"query": ["a"] * 17}, None),
        ("/default/search", {"query": "a", "filters": {}}, "filters"),
        ("/default/search", {"query": "a", "filters": {"type": "like", "key": "k", "value": 1}},
         "filters"),
        ("/default/search", {"query": "a", "ranking_options": {"score_threshold": 1.5}},
         "ranking_options.score_threshold"),
        ("/default/search", {"query": "a", "ranking_options": {"ranker": "mine"}},
         "ranking_options.ranker"),
        ("/default/search", {"query": "a", "ranking_options": {
            "hybrid_search": {"embedding_weight": 0, "text_weight": 0}}}, None),
        ("/default/search", {"query": "a", "ranking_options": {
            "score_threshold": 0.5, "hybrid_search": {}}}, None),
        ("/default/search", {"query": "a", "rewrite_query": True}, "rewrite_query"),
        ("/default/search", {"query": "a", "max_num_results": 51}, "max_num_results"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(
    http: httpx.Client, path: str, body: dict[str, Any], param: str | None
) -> None:
    response = http.post(f"/v1/vector_stores{path}", json=body)
    assert response.status_code == 400
    if param is not None:
        assert response.json()["error"]["param"] == param


def test_unknown_stores_and_files_are_not_found(served: Any) -> None:
    client = served.client()
    file_id = add_file(served, "a.txt", b"a")
    for action in (
        lambda: client.vector_stores.retrieve("vs_none"),
        lambda: client.vector_stores.delete("vs_none"),
        lambda: client.vector_stores.files.list("vs_none"),
        lambda: client.vector_stores.files.create("vs_none", file_id=file_id),
        lambda: client.vector_stores.search("vs_none", query="a"),
        lambda: client.vector_stores.files.retrieve(file_id, vector_store_id="default"),
        lambda: client.vector_stores.files.delete(file_id, vector_store_id="default"),
        lambda: client.vector_stores.files.create("default", file_id="file-none"),
    ):
        with pytest.raises(openai.NotFoundError):
            action()


def test_deleting_a_store_keeps_the_uploads(served: Any) -> None:
    client = served.client()
    file_id = add_file(served, "a.txt", b"a cat")
    store = client.vector_stores.create(file_ids=[file_id])
    assert client.files.retrieve(file_id).chunkcache["vector_store_ids"] == [store.id]
    assert client.vector_stores.delete(store.id).deleted
    assert client.files.retrieve(file_id).chunkcache["vector_store_ids"] == []
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)


def test_the_default_store_is_emptied_and_stays(served: Any) -> None:
    client = served.client()
    client.vector_stores.files.create("default", file_id=add_file(served, "a.txt", b"a cat"))
    assert client.vector_stores.delete("default").deleted
    assert client.vector_stores.retrieve("default").file_counts.total == 0


def test_answers_are_retrieved_from_the_store_that_is_named(served: Any) -> None:
    client = served.client()
    store = client.vector_stores.create(file_ids=[add_file(served, "a.txt", b"the cat sleeps")])
    for store_id, titles in ((store.id, ["a.txt"]), (None, [])):
        done = client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": "where is the cat"}],
            extra_body={"chunkcache": {"vector_store_id": store_id}},
        )  # fmt: skip
        assert [a.url_citation.title for a in done.choices[0].message.annotations] == titles
