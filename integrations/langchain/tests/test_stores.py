"""Vector store, retriever and embeddings in LangChain's own suites, and beyond them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from chunkcache_client.errors import InvalidRequest, UnsupportedField
from langchain_chunkcache import ChunkCacheEmbeddings, ChunkCacheRetriever, ChunkCacheVectorStore
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from chunkcache_client import Client

URL = os.environ.get("CHUNKCACHE_URL", "http://127.0.0.1:8321")


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, store_id: str) -> VectorStore:
        return ChunkCacheVectorStore(store_id, base_url=URL)


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[ChunkCacheEmbeddings]:
        return ChunkCacheEmbeddings

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"CHUNKCACHE_API_KEY": "key"}, {}, {"api_key": "key"}


@pytest.mark.usefixtures("url")
class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[ChunkCacheEmbeddings]:
        return ChunkCacheEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": URL}


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def filled(self, client: Client, store_id: str) -> None:
        names = ("owl", "cat", "bee", "ant")
        files = [(f"{name}.txt", f"All about the {name}.".encode()) for name in names]
        client.ingest(files, vector_store_id=store_id)
        self.store = store_id

    @property
    def retriever_constructor(self) -> type[ChunkCacheRetriever]:
        return ChunkCacheRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_url": URL, "vector_store_id": self.store}

    @property
    def retriever_query_example(self) -> str:
        return "which one hunts at night"


@pytest.fixture
def store(store_id: str) -> ChunkCacheVectorStore:
    return ChunkCacheVectorStore(store_id, base_url=URL)


def test_from_texts_and_filters_and_scores(store_id: str) -> None:
    store = ChunkCacheVectorStore.from_texts(
        ["Owls hunt at night.", "Cats sleep by day."],
        metadatas=[{"page": 1, "source": "books/animals.pdf"}, {"page": 2}],
        ids=["owl", "cat"],
        vector_store_id=store_id,
        base_url=URL,
    )
    (found,) = store.similarity_search("animals", filter={"page": {"$gte": 2}})
    assert (found.id, found.metadata) == ("cat", {"page": 2})
    (first, best), (_, second) = store.similarity_search_with_score("which one hunts at night", k=2)
    assert first.id == "owl" and best >= second
    retriever = store.as_retriever(search_kwargs={"k": 1, "filter": {"page": 1}})
    assert [one.id for one in retriever.invoke("animals")] == ["owl"]
    passage = ChunkCacheRetriever(base_url=URL, vector_store_id=store_id, k=1).invoke("owls")[0]
    assert passage.metadata["title"] == "animals.pdf.txt"
    assert passage.metadata["document_id"] == "owl" and passage.metadata["page"] == 1


def test_a_threshold_is_a_cosine(store: ChunkCacheVectorStore) -> None:
    store.add_texts(["Owls hunt at night.", "A recipe for bread."], ids=["owl", "bread"])
    found = store.similarity_search_with_relevance_scores("Owls hunt at night.")
    (first, best), *others = found
    assert first.id == "owl" and 0.6 < best <= 1.0 and all(score < best for _, score in others)
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": best - 0.01}
    )
    assert [one.id for one in retriever.invoke("Owls hunt at night.")] == ["owl"]


def test_a_long_document_is_found_by_its_passages(store: ChunkCacheVectorStore) -> None:
    content = " ".join(f"Sentence {number} is about the owl." for number in range(120))
    store.add_texts([content], ids=["long"])
    found = store.similarity_search("owl", k=3)
    assert {one.id for one in found} == {"long"}
    for one in found:
        start = one.metadata["start_index"]
        assert content[start : start + len(one.page_content)] == one.page_content
    assert store.get_by_ids(["long"])[0].page_content == content


def test_what_cannot_be_kept_or_done_is_refused_by_name(store: ChunkCacheVectorStore) -> None:
    with pytest.raises(InvalidRequest, match=r"attributes.tags: got \['a'\]"):
        store.add_texts(["x"], [{"tags": ["a"]}])
    with pytest.raises(UnsupportedField, match="embedding: got DeterministicFakeEmbedding"):
        ChunkCacheVectorStore.from_texts(["x"], DeterministicFakeEmbedding(size=3), base_url=URL)
    with pytest.raises(UnsupportedField, match="'mmr' is not supported"):
        store.as_retriever(search_type="mmr").invoke("x")
    with pytest.raises(UnsupportedField, match="there is no 'fetch'"):
        store.similarity_search("x", fetch=3)
    with pytest.raises(InvalidRequest, match="ids: got None"):
        store.delete()
    assert store.similarity_search("x") == []
