"""The LLM against a running server: nodes as documents, streams, query engines."""

from __future__ import annotations

import os

import pytest
from chunkcache_client.errors import UnsupportedField
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.llms.chunkcache import ChunkCacheLLM
from llama_index.retrievers.chunkcache import ChunkCacheRetriever

from chunkcache_client import Client

URL = os.environ.get("CHUNKCACHE_URL", "http://127.0.0.1:8321")
OWLS = TextNode(id_="owls", text="Owls hunt at night.", metadata={"title": "Owls"})
QUESTION = [ChatMessage(role=MessageRole.USER, content="When do owls hunt?")]

pytestmark = pytest.mark.usefixtures("url")


@pytest.fixture
def llm() -> ChunkCacheLLM:
    return ChunkCacheLLM(base_url=URL, max_tokens=8)


def test_nodes_are_cited_by_their_ids(llm: ChunkCacheLLM) -> None:
    response = llm.chat(QUESTION, nodes=[NodeWithScore(node=OWLS, score=1.0)])
    assert response.message.content
    (cited,) = response.raw["citations"]
    assert (cited["document_id"], cited["text"]) == ("owls", OWLS.text)
    assert response.raw["chunkcache"]["rung"] in ("exact", "repaired", "full")
    counts = response.additional_kwargs
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]


def test_a_stream_is_the_same_answer_in_pieces(llm: ChunkCacheLLM) -> None:
    whole = llm.chat(QUESTION, nodes=[OWLS])
    *pieces, last = llm.stream_chat(QUESTION, nodes=[OWLS])
    assert "".join(piece.delta or "" for piece in pieces) == whole.message.content
    assert pieces[-1].message.content == last.message.content == whole.message.content
    assert last.raw["citations"][0]["document_id"] == "owls"


async def test_both_can_be_awaited(llm: ChunkCacheLLM) -> None:
    whole = await llm.achat(QUESTION, nodes=[OWLS])
    responses = [piece async for piece in await llm.astream_chat(QUESTION, nodes=[OWLS])]
    assert responses[-1].message.content == whole.message.content


async def test_a_prompt_alone_is_a_question(llm: ChunkCacheLLM) -> None:
    done = llm.complete("When do owls hunt?", nodes=[OWLS])
    assert done.text == llm.chat(QUESTION, nodes=[OWLS]).message.content
    assert list(llm.stream_complete("When do owls hunt?", nodes=[OWLS]))[-1].text == done.text
    assert (await llm.acomplete("When do owls hunt?", nodes=[OWLS])).text == done.text
    stream = await llm.astream_complete("When do owls hunt?", nodes=[OWLS])
    assert [piece.text async for piece in stream][-1] == done.text


def test_a_query_engine_keeps_node_ids_and_its_passages_are_recognised(
    client: Client, store_id: str
) -> None:
    text = " ".join(f"The owl of tower number {number} hunts at night." for number in range(12))
    retriever = ChunkCacheRetriever(store_id, base_url=URL, similarity_top_k=1)
    retriever.add_nodes([TextNode(id_="towers", text=text)])
    plain = next(one.id for one in client.models() if one.kind == "chat" and not one.retrieves)
    llm = ChunkCacheLLM(base_url=URL, model=plain, max_tokens=8)
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm)
    response = engine.query("When does the owl of tower number 3 hunt?")
    assert [one.node_id for one in response.source_nodes] == ["towers"]
    assert str(response)
    prompt = f"Context:\n\n{text}\n\nWhen does the owl of tower number 3 hunt?"
    raw = llm.chat([ChatMessage(role=MessageRole.USER, content=prompt)]).raw
    assert any(span["matched"] for span in raw["chunkcache"]["spans"])


def test_what_the_server_does_not_take_is_refused_by_name(llm: ChunkCacheLLM) -> None:
    picture = ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(url="http://x/y.png")])
    with pytest.raises(UnsupportedField, match=r"messages\[0\].blocks: got ImageBlock"):
        llm.chat([picture])
    result = ChatMessage(role=MessageRole.TOOL, content="7")
    with pytest.raises(UnsupportedField, match=r"messages\[1\].role: got 'tool'"):
        llm.chat([*QUESTION, result])
    with pytest.raises(TypeError, match="there is no wish 'colour'"):
        llm.chat(QUESTION, colour="red")


def test_the_key_is_not_shown_when_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHUNKCACHE_API_KEY", "secret-key")
    llm = ChunkCacheLLM(base_url="http://somewhere", model="m", max_tokens=5)
    assert llm.api_key == "secret-key"
    assert "secret-key" not in str(llm.to_dict()) and "secret-key" not in repr(llm)
    again = ChunkCacheLLM.from_dict(llm.to_dict())
    assert (again.base_url, again.model, again.metadata.num_output) == ("http://somewhere", "m", 5)
