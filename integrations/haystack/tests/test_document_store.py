"""The document store in Haystack's own suites, and what the server makes of it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from chunkcache_client.errors import InvalidRequest
from haystack import Document, Pipeline
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    DocumentStoreBaseExtendedTests,
)
from haystack.testing.document_store_async import (
    CountDocumentsAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    WriteDocumentsAsyncTest,
)
from haystack_integrations.components.retrievers.chunkcache import ChunkCacheRetriever
from haystack_integrations.document_stores.chunkcache import ChunkCacheDocumentStore
from haystack_integrations.document_stores.chunkcache.filters import server_filter

URL = os.environ.get("CHUNKCACHE_URL", "http://127.0.0.1:8321")
DOCUMENTS = [
    Document(content="Owls hunt at night.", meta={"kind": "bird", "page": 1}),
    Document(content="Cats sleep by day.", meta={"kind": "mammal", "page": 2}),
    Document(content="Nobody knows what bees do.", meta={"page": 3}),
]


@pytest.fixture
def document_store(store_id: str) -> ChunkCacheDocumentStore:
    return ChunkCacheDocumentStore(store_id, api_base_url=URL)


def without_embeddings(documents: list[Document]) -> list[Document]:
    """The server has its own embeddings and does not keep those of documents."""
    return [replace(document, embedding=None) for document in documents]


class Compared:
    @pytest.fixture
    def document_store(self, store_id: str) -> ChunkCacheDocumentStore:
        return ChunkCacheDocumentStore(store_id, api_base_url=URL)

    def assert_documents_are_equal(
        self, received: list[Document], expected: list[Document]
    ) -> None:
        assert received == without_embeddings(expected)


class TestDocumentStore(Compared, DocumentStoreBaseExtendedTests, CountDocumentsByFilterTest):
    def test_write_documents(self, document_store: ChunkCacheDocumentStore) -> None:
        """Without a policy a duplicate fails; the suite leaves this to the store."""
        assert document_store.write_documents(DOCUMENTS) == 3
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents(DOCUMENTS[:1])


class TestDocumentStoreAsync(
    Compared,
    CountDocumentsAsyncTest,
    WriteDocumentsAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
):
    async def test_write_documents_async(self, document_store: ChunkCacheDocumentStore) -> None:
        assert await document_store.write_documents_async(DOCUMENTS) == 3
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async(DOCUMENTS[:1])


def test_a_search_finds_documents_under_their_ids(document_store: ChunkCacheDocumentStore) -> None:
    document_store.write_documents(DOCUMENTS)
    retriever = ChunkCacheRetriever(document_store, top_k=2)
    first, _ = retriever.run("which one hunts at night")["documents"]
    assert replace(first, score=None) == DOCUMENTS[0] and first.score is not None


@pytest.mark.parametrize(
    ("filters", "pages"),
    [
        ({"field": "meta.kind", "operator": "==", "value": "bird"}, {1}),
        ({"field": "meta.kind", "operator": "!=", "value": "bird"}, {2, 3}),
        ({"field": "meta.page", "operator": ">=", "value": 2}, {2, 3}),
        ({"field": "meta.kind", "operator": "not in", "value": ["bird", "fish"]}, {2, 3}),
        (
            {
                "operator": "NOT",
                "conditions": [
                    {"field": "meta.kind", "operator": "==", "value": "bird"},
                    {"field": "meta.page", "operator": "in", "value": [1, 2]},
                ],
            },
            {2, 3},
        ),
        (
            {
                "operator": "OR",
                "conditions": [
                    {"field": "meta.kind", "operator": "==", "value": "bird"},
                    {
                        "operator": "NOT",
                        "conditions": [{"field": "meta.page", "operator": "in", "value": [1, 2]}],
                    },
                ],
            },
            {1, 3},
        ),
    ],
)
def test_the_server_filters_as_haystack_does(
    document_store: ChunkCacheDocumentStore, filters: dict[str, Any], pages: set[int]
) -> None:
    document_store.write_documents(DOCUMENTS)
    found = document_store.search("animals", filters=filters)
    assert {document.meta["page"] for document in found} == pages
    assert {one.meta["page"] for one in document_store.filter_documents(filters)} == pages


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"field": "content", "operator": "==", "value": "x"}, "must begin with 'meta.'"),
        ({"field": "meta.a", "operator": "==", "value": None}, "cannot search for what is absent"),
        ({"field": "meta.a", "operator": "like", "value": "x"}, "operator: got 'like'"),
        ({"field": "meta.a", "operator": "in", "value": "x"}, "must be a list"),
        ({"field": "meta.a", "operator": "=="}, "'value' key missing"),
        ({"operator": "XOR", "conditions": []}, "operator: got 'XOR'"),
        (
            {"operator": "NOT", "conditions": [{"field": "meta.a", "operator": ">", "value": 1}]},
            "Hint: write the opposite comparison",
        ),
    ],
)
def test_what_the_server_cannot_search_by_is_refused_by_name(
    filters: dict[str, Any], message: str
) -> None:
    with pytest.raises(FilterError, match=message):
        server_filter(filters)


def test_a_long_document_is_found_by_its_passages(document_store: ChunkCacheDocumentStore) -> None:
    content = " ".join(f"Sentence {number} is about the owl." for number in range(120))
    document_store.write_documents([Document(id="long", content=content)])
    found = document_store.search("owl", top_k=3)
    assert len({one.id for one in found}) == 3
    for one in found:
        assert one.meta["document_id"] == "long"
        start = one.meta["split_idx_start"]
        assert content[start : start + len(one.content or "")] == one.content
    assert document_store.filter_documents()[0].content == content


def test_what_cannot_be_kept_is_refused_by_name(document_store: ChunkCacheDocumentStore) -> None:
    with pytest.raises(DocumentStoreError, match="content: got None"):
        document_store.write_documents([Document(content=None, meta={"a": 1})])
    with pytest.raises(InvalidRequest, match=r"attributes.tags: got \['a'\]"):
        document_store.write_documents([Document(content="x", meta={"tags": ["a"]})])
    assert document_store.count_documents() == 0
    document_store.write_documents([Document(id="1", content="x")], DuplicatePolicy.SKIP)
    assert document_store.count_documents() == 1


def test_a_pipeline_is_saved_without_its_key_and_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHUNKCACHE_API_KEY", "secret-key")
    store = ChunkCacheDocumentStore("store", api_base_url="http://somewhere")
    pipeline = Pipeline()
    pipeline.add_component("retriever", ChunkCacheRetriever(store, top_k=7, filter_policy="merge"))
    saved = pipeline.dumps()
    assert "secret-key" not in saved
    again = Pipeline.loads(saved).get_component("retriever")
    assert (again.top_k, again.filter_policy.value) == (7, "merge")
    assert again.document_store.to_dict() == store.to_dict()
    assert again.document_store.api_key.resolve_value() == "secret-key"
