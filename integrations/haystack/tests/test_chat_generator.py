"""The chat generator in pipelines, whole and streamed, against a running server."""

from __future__ import annotations

import os
from typing import Any

import pytest
from chunkcache_client.errors import InvalidRequest
from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.core.serialization import allow_deserialization_module
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import Tool
from haystack_integrations.components.generators.chunkcache import ChunkCacheChatGenerator
from haystack_integrations.components.retrievers.chunkcache import ChunkCacheRetriever
from haystack_integrations.document_stores.chunkcache import ChunkCacheDocumentStore

URL = os.environ.get("CHUNKCACHE_URL", "http://127.0.0.1:8321")
OWLS = Document(id="owls", content="Owls hunt at night.", meta={"title": "Owls"})


def add(a: int) -> int:
    """A tool that a saved pipeline can name."""
    return a


TOOL = Tool(
    name="add",
    description="adds",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    },
    function=add,
)

pytestmark = pytest.mark.usefixtures("url")


@pytest.fixture
def generator() -> ChunkCacheChatGenerator:
    return ChunkCacheChatGenerator(api_base_url=URL, generation_kwargs={"max_tokens": 8})


def test_a_reply_says_what_it_was_drawn_from_and_how_exact_it_is(
    generator: ChunkCacheChatGenerator,
) -> None:
    (reply,) = generator.run("When do owls hunt?", documents=[OWLS])["replies"]
    assert reply.text and reply.meta["usage"]["completion_tokens"] <= 8
    (cited,) = reply.meta["citations"]
    assert (cited["document_id"], cited["text"]) == ("owls", OWLS.content)
    assert reply.meta["chunkcache"]["rung"] in ("exact", "repaired", "full")
    assert {span["kind"] for span in reply.meta["chunkcache"]["spans"]} >= {"head", "chunk"}


def test_a_stream_is_the_same_reply_in_pieces(generator: ChunkCacheChatGenerator) -> None:
    pieces: list[StreamingChunk] = []
    whole = generator.run("When do owls hunt?", documents=[OWLS])["replies"][0]
    streamed = generator.run("When do owls hunt?", pieces.append, documents=[OWLS])["replies"][0]
    assert streamed.text == whole.text == "".join(piece.content for piece in pieces)
    assert pieces[0].start and pieces[-1].finish_reason == streamed.meta["finish_reason"]
    assert not any(piece.start for piece in pieces[1:])


async def test_both_can_be_awaited(generator: ChunkCacheChatGenerator) -> None:
    seen: list[str] = []

    async def callback(chunk: StreamingChunk) -> None:
        seen.append(chunk.content)

    whole = await generator.run_async("When do owls hunt?", documents=[OWLS])
    streamed = await generator.run_async("When do owls hunt?", callback, documents=[OWLS])
    assert "".join(seen) == streamed["replies"][0].text == whole["replies"][0].text


@pytest.mark.parametrize("callback", [None, lambda chunk: None])
def test_a_call_that_is_demanded_follows_its_schema(
    generator: ChunkCacheChatGenerator, callback: Any
) -> None:
    wishes = {"tool_choice": "required", "max_tokens": 64}
    (reply,) = generator.run("Add seven.", callback, wishes, tools=[TOOL])["replies"]
    (call,) = reply.tool_calls
    assert call.tool_name == "add" and call.id and 0 <= call.arguments["a"] <= 99
    assert reply.meta["finish_reason"] == "tool_calls" and reply.text is None


def test_a_call_that_is_cut_off_is_no_call(generator: ChunkCacheChatGenerator) -> None:
    wishes = {"tool_choice": "required", "max_tokens": 4}
    (reply,) = generator.run("Add seven.", generation_kwargs=wishes, tools=[TOOL])["replies"]
    assert (reply.tool_calls, reply.text, reply.meta["finish_reason"]) == ([], "", "length")


def test_what_there_is_not_is_refused_by_name(generator: ChunkCacheChatGenerator) -> None:
    with pytest.raises(TypeError, match="there is no wish 'colour'"):
        generator.run("hello", generation_kwargs={"colour": "red"})
    with pytest.raises(InvalidRequest, match="documents"):
        generator.run("hello", documents=[Document(content="x")], generation_kwargs={"top_k": 2})


def test_a_pipeline_retrieves_and_answers_and_can_be_saved(store_id: str) -> None:
    store = ChunkCacheDocumentStore(store_id, api_base_url=URL)
    store.write_documents([OWLS])
    pipeline = Pipeline()
    pipeline.add_component("retriever", ChunkCacheRetriever(store, top_k=1))
    template = [ChatMessage.from_user("{{question}}")]
    pipeline.add_component("prompt", ChatPromptBuilder(template, required_variables=["question"]))
    generator = ChunkCacheChatGenerator(
        api_base_url=URL, generation_kwargs={"max_tokens": 8}, tools=[TOOL], streaming_callback=show
    )
    pipeline.add_component("llm", generator)
    pipeline.connect("retriever.documents", "llm.documents")
    pipeline.connect("prompt.prompt", "llm.messages")
    allow_deserialization_module(__name__)  # of the tool and the callback
    saved = generator.to_dict()
    assert ChunkCacheChatGenerator.from_dict(saved).to_dict() == generator.to_dict()
    question = "When do owls hunt?"
    done = pipeline.run({"retriever": {"query": question}, "prompt": {"question": question}})
    (reply,) = done["llm"]["replies"]
    assert [cited["document_id"] for cited in reply.meta["citations"]] == ["owls"]


def show(chunk: StreamingChunk) -> None:
    """A callback that a saved pipeline can name."""
