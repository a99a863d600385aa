"""The retriever against a running server: node ids, metadata, filters."""

from __future__ import annotations

import os
from typing import Any

import pytest
from chunkcache_client.errors import InvalidRequest, UnsupportedField
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.retrievers.chunkcache import ChunkCacheRetriever
from llama_index.retrievers.chunkcache.filters import server_filter

from chunkcache_client import Client

URL = os.environ.get("CHUNKCACHE_URL", "http://127.0.0.1:8321")


def node(node_id: str, text: str, **metadata: Any) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"file-of-{node_id}")}
    return TextNode(id_=node_id, text=text, metadata=metadata, relationships=source)


NODES = [
    node("owl", "Owls hunt at night.", kind="bird", page=1),
    node("cat", "Cats sleep by day.", kind="mammal", page=2),
    node("bee", "Nobody knows what bees do.", page=3),
]


@pytest.fixture
def retriever(store_id: str) -> ChunkCacheRetriever:
    made = ChunkCacheRetriever(store_id, base_url=URL, similarity_top_k=3)
    assert made.add_nodes(NODES) == ["owl", "cat", "bee"]
    return made


def test_nodes_come_back_under_their_ids(retriever: ChunkCacheRetriever) -> None:
    found = retriever.retrieve("which one hunts at night")
    assert found[0].node_id == "owl" and found[0].score is not None
    assert {one.node_id for one in found} == {"owl", "cat", "bee"}
    first = found[0].node
    assert (first.text, first.metadata) == ("Owls hunt at night.", {"kind": "bird", "page": 1})
    assert first.ref_doc_id == "file-of-owl"


async def test_it_can_be_awaited(retriever: ChunkCacheRetriever) -> None:
    found = await retriever.aretrieve("which one hunts at night")
    assert found[0].node_id == "owl"


def test_a_node_is_replaced_and_deleted_by_its_id(retriever: ChunkCacheRetriever) -> None:
    retriever.add_nodes([node("owl", "An owl is a bird of prey.")])
    assert retriever.retrieve("owl")[0].text == "An owl is a bird of prey."
    assert retriever.delete_nodes(["owl", "gone"]) == 1
    assert "owl" not in {one.node_id for one in retriever.retrieve("owl")}


def test_files_of_the_server_come_as_chunks_of_their_document(
    client: Client, retriever: ChunkCacheRetriever
) -> None:
    text = " ".join(f"Sentence {number} is about the whale." for number in range(120))
    client.ingest(("whale.txt", text.encode()), vector_store_id=retriever.vector_store_id)
    found = retriever.retrieve("whale")
    assert len({one.node_id for one in found}) == 3
    assert len({one.node.ref_doc_id for one in found}) == 1
    for one in found:
        assert text[one.node.start_char_idx : one.node.end_char_idx] == one.text


def filters(condition: FilterCondition, *parts: Any) -> MetadataFilters:
    made = [
        part
        if isinstance(part, MetadataFilters)
        else MetadataFilter(key=part[0], operator=FilterOperator(part[1]), value=part[2])
        for part in parts
    ]
    return MetadataFilters(filters=made, condition=condition)


AND, OR, NOT = FilterCondition.AND, FilterCondition.OR, FilterCondition.NOT


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (filters(AND, ("kind", "==", "bird")), {"owl"}),
        (filters(AND, ("kind", "!=", "bird"), ("page", "<", 3)), {"cat"}),
        (filters(OR, ("kind", "==", "bird"), ("page", ">=", 3)), {"owl", "bee"}),
        (filters(AND, ("page", "in", [1, 2])), {"owl", "cat"}),
        (filters(AND, ("kind", "nin", ["bird"])), {"cat", "bee"}),
        (filters(NOT, ("kind", "==", "bird"), ("page", "==", 3)), {"cat"}),
        (filters(AND, filters(NOT, ("page", "in", [1])), ("kind", "==", "mammal")), {"cat"}),
    ],
)
def test_the_server_filters_as_said(
    retriever: ChunkCacheRetriever, given: MetadataFilters, ids: set[str]
) -> None:
    retriever.filters = given
    assert {one.node_id for one in retriever.retrieve("animals")} == ids


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (filters(AND, ("kind", "text_match", "bi")), "got the operator 'text_match'"),
        (filters(AND, ("kind", "is_empty", None)), "got the operator 'is_empty'"),
        (filters(AND, ("kind", "==", None)), "must be one text or number"),
        (filters(AND, ("page", "in", 1)), "must be a list"),
        (filters(NOT, ("page", ">", 1)), "Hint: write the opposite comparison"),
    ],
)
def test_what_the_server_cannot_search_by_is_refused_by_name(
    given: MetadataFilters, message: str
) -> None:
    with pytest.raises(UnsupportedField, match=message):
        server_filter(given)


def test_no_filters_are_none() -> None:
    assert server_filter(None) is None and server_filter(MetadataFilters(filters=[])) is None


def test_metadata_that_cannot_be_kept_is_refused_by_name(retriever: ChunkCacheRetriever) -> None:
    with pytest.raises(InvalidRequest, match=r"attributes.tags: got \['a'\]"):
        retriever.add_nodes([node("new", "text", tags=["a"])])
