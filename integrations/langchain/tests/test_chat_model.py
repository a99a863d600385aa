"""The chat model in LangChain's own suites, unit and integration, and beyond them."""

from __future__ import annotations

import os
from functools import reduce
from operator import add
from typing import Annotated, Any

import pytest
from chunkcache_client.errors import InvalidRequest, UnsupportedField
from langchain_chunkcache import ChatChunkCache
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, Field

from chunkcache_client import Client, Text

URL = os.environ.get("CHUNKCACHE_URL", "http://127.0.0.1:8321")


class TestChatModelUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatChunkCache]:
        return ChatChunkCache

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "any"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"CHUNKCACHE_API_KEY": "key"}, {}, {"api_key": "key"}


@pytest.mark.usefixtures("url")
class TestChatModel(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatChunkCache]:
        return ChatChunkCache

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """A model of 135M repeats itself without a penalty, and finds no end without a limit."""
        return {"base_url": URL, "top_k": 0, "max_tokens": 96, "frequency_penalty": 1.0}

    @property
    def model_override_value(self) -> str:
        """The id that never retrieves."""
        with Client(URL) as client:
            return next(one.id for one in client.models() if one.id.endswith(":plain"))

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.mark.xfail(reason="any JSON object will do in this mode; 135M do not find the keys")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @pytest.mark.xfail(reason="tools that need not be called are not offered to the model")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="135M of English do not copy Chinese names into arguments")
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
        super().test_unicode_tool_call_integration(model)


OWLS = Document(id="owls", page_content="Owls hunt at night.", metadata={"title": "Owls"})


class Add(BaseModel):
    """Adds."""

    a: Annotated[int, Field(ge=0, le=99)]


@pytest.fixture
def model(url: str) -> ChatChunkCache:
    return ChatChunkCache(base_url=url, max_tokens=8)


def check_cited(message: AIMessage) -> None:
    about = message.response_metadata
    (cited,) = about["citations"]
    assert (cited["document_id"], cited["text"]) == ("owls", OWLS.page_content)
    assert about["chunkcache"]["rung"] in ("exact", "repaired", "full")
    assert {span["kind"] for span in about["chunkcache"]["spans"]} >= {"head", "chunk"}
    assert message.usage_metadata is not None and message.usage_metadata["output_tokens"] <= 8


async def test_an_answer_says_what_it_was_drawn_from_in_every_manner(
    model: ChatChunkCache,
) -> None:
    asked = {"input": "When do owls hunt?", "documents": [OWLS]}
    whole = model.invoke(**asked)
    check_cited(whole)
    check_cited(await model.ainvoke(**asked))
    pieces: list[AIMessageChunk] = list(model.stream(**asked))
    merged = reduce(add, pieces)
    assert merged.text == whole.text and len(pieces) > 2
    check_cited(merged)
    assert merged.text == reduce(add, [piece async for piece in model.astream(**asked)]).text


def test_a_vector_store_is_searched(
    url: str, client: Client, store_id: str, model: ChatChunkCache
) -> None:
    client.put_texts([Text("1", "Bees dance.", "Bees")], vector_store_id=store_id)
    about = model.invoke("What do bees do?", vector_store_id=store_id).response_metadata
    assert [cited["text"] for cited in about["citations"]] == ["Bees dance."]
    assert about["citations"][0]["link"].startswith(url)
    silent = model.invoke("What do bees do?", vector_store_id=store_id, top_k=0)
    assert silent.response_metadata["citations"] == []


def test_a_call_is_whole_and_in_pieces_the_same(url: str) -> None:
    bound = ChatChunkCache(base_url=url, max_tokens=64, top_k=0).bind_tools(
        [Add], tool_choice="Add"
    )
    whole = bound.invoke("Add seven.")
    (call,) = whole.tool_calls
    assert call["name"] == "Add" and call["id"] and 0 <= call["args"]["a"] <= 99
    merged = reduce(add, bound.stream("Add seven."))
    assert merged.tool_calls[0]["args"] == call["args"] and merged.tool_calls[0]["id"]
    history = [HumanMessage("Add seven."), whole, ToolMessage("7", tool_call_id=call["id"])]
    assert isinstance(bound.invoke(history), AIMessage)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_held_to_its_schema(url: str, method: str) -> None:
    model = ChatChunkCache(base_url=url, max_tokens=64, top_k=0)
    made = model.with_structured_output(Add, method=method).invoke("Add seven.")
    assert isinstance(made, Add)
    raw = model.with_structured_output(Add, method=method, include_raw=True).invoke("Add seven.")
    assert raw["parsed"] == made and raw["parsing_error"] is None
    assert raw["raw"].response_metadata["chunkcache"]


def test_what_is_cut_off_is_no_structured_output(url: str) -> None:
    model = ChatChunkCache(base_url=url, max_tokens=1, top_k=0)
    raw = model.with_structured_output(Add, include_raw=True).invoke("Add seven.")
    assert raw["parsed"] is None and raw["parsing_error"] is not None
    cut = model.bind_tools([Add], tool_choice="any").invoke("Add seven.", max_tokens=4)
    assert not cut.tool_calls and cut.invalid_tool_calls[0]["name"] == "Add"


def test_what_there_is_not_is_refused_by_name(model: ChatChunkCache) -> None:
    with pytest.raises(TypeError, match="there is no wish 'colour'"):
        model.invoke("hello", colour="red")
    picture = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    with pytest.raises(InvalidRequest, match="image_url"):
        model.invoke([HumanMessage([picture])])
    with pytest.raises(UnsupportedField, match="method: got 'magic'"):
        model.with_structured_output(Add, method="magic")
    with pytest.raises(UnsupportedField, match="there is no 'tools'"):
        model.with_structured_output(Add, tools=[])
