"""The server's decoder as a chat generator."""

# No `from __future__ import annotations`: Haystack reads the types of `run` as objects.

import inspect
import json
from contextlib import aclosing, closing
from typing import Any

from chunkcache_client.protocol import AnswerDelta
from haystack import Document, component, default_from_dict, default_to_dict
from haystack.dataclasses import (
    ChatMessage,
    ComponentInfo,
    StreamingCallbackT,
    StreamingChunk,
    ToolCall,
    ToolCallDelta,
    select_streaming_callback,
)
from haystack.tools import (
    ToolsType,
    deserialize_tools_or_toolset_inplace,
    flatten_tools_or_toolsets,
    serialize_tools_or_toolset,
)
from haystack.utils import Secret, deserialize_callable, serialize_callable

from chunkcache_client import DEFAULT_URL, Answer, AsyncClient, Client

API_KEY = "CHUNKCACHE_API_KEY"


@component
class ChunkCacheChatGenerator:
    """Answers from documents: those given to a run, or those the server finds by itself.

    A model id that retrieves searches for the last user message unless `documents` are given;
    `top_k=0` among the `generation_kwargs`, or the id that ends in `:plain`, does not. Passages
    that stand in the messages are recognised and read from the cache all the same.

    A reply's meta has `citations` (the passages, with `link`), `chunkcache` (`rung`: exact,
    repaired or full; what each span got; what it cost) and what OpenAI's generator has.

    Args:
        model: empty: the server's first, which retrieves.
        generation_kwargs: the wishes of `chunkcache_client.Client.ask` (`max_tokens`, `budget`,
            `vector_store_id`, `tool_choice`, ...); one that there is not is a `TypeError`.
        tools: one is called where `tool_choice` demands it; else this server's model does not.
        timeout: seconds.
    """

    def __init__(
        self,
        model: str = "",
        api_base_url: str = DEFAULT_URL,
        api_key: Secret | None = Secret.from_env_var(API_KEY, strict=False),  # noqa: B008
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        tools: ToolsType | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 2,
    ) -> None:
        self.model = model
        self.api_base_url = api_base_url
        self.api_key = api_key
        self.streaming_callback = streaming_callback
        self.generation_kwargs = generation_kwargs or {}
        self.tools = tools
        self.timeout = timeout
        self.max_retries = max_retries

    def to_dict(self) -> dict[str, Any]:
        """How to make it again; the key is named and not shown."""
        callback = self.streaming_callback
        return default_to_dict(
            self,
            model=self.model,
            api_base_url=self.api_base_url,
            api_key=self.api_key.to_dict() if self.api_key is not None else None,
            streaming_callback=serialize_callable(callback) if callback else None,
            generation_kwargs=self.generation_kwargs,
            tools=serialize_tools_or_toolset(self.tools),
            timeout=self.timeout,
            max_retries=self.max_retries,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ChunkCacheChatGenerator":
        """Made again from `to_dict`."""
        given = data["init_parameters"]
        deserialize_tools_or_toolset_inplace(given, key="tools")
        if isinstance(given.get("api_key"), dict):
            given["api_key"] = Secret.from_dict(given["api_key"])
        if given.get("streaming_callback"):
            given["streaming_callback"] = deserialize_callable(given["streaming_callback"])
        return default_from_dict(cls, data)

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
        documents: list[Document] | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """One reply. `generation_kwargs` of a run are put over those of the component."""
        turns = _turns(messages)
        callback = select_streaming_callback(
            self.streaming_callback, streaming_callback, requires_async=False
        )
        wishes = self._wishes(generation_kwargs, tools, documents)
        with Client(**self._connection()) as client:
            if callback is None:
                return {"replies": [_reply(client.ask(turns, **wishes))]}
            pieces = _Pieces(ComponentInfo.from_component(self))
            with closing(client.stream(turns, **wishes)) as events:
                for event in events:
                    if (chunk := pieces.of(event)) is not None:
                        callback(chunk)
        return {"replies": [_reply(pieces.answer)]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
        documents: list[Document] | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """See `run`."""
        turns = _turns(messages)
        callback = select_streaming_callback(
            self.streaming_callback, streaming_callback, requires_async=True
        )
        wishes = self._wishes(generation_kwargs, tools, documents)
        async with AsyncClient(**self._connection()) as client:
            if callback is None:
                return {"replies": [_reply(await client.ask(turns, **wishes))]}
            pieces = _Pieces(ComponentInfo.from_component(self))
            async with aclosing(client.stream(turns, **wishes)) as events:
                async for event in events:
                    if (chunk := pieces.of(event)) is not None:
                        waiting = callback(chunk)
                        if inspect.isawaitable(waiting):
                            await waiting
        return {"replies": [_reply(pieces.answer)]}

    def _connection(self) -> dict[str, Any]:
        return {
            "base_url": self.api_base_url,
            "api_key": self.api_key.resolve_value() if self.api_key is not None else None,
            "timeout_s": self.timeout,
            "retries": self.max_retries,
        }

    def _wishes(
        self,
        generation_kwargs: dict[str, Any] | None,
        tools: ToolsType | None,
        documents: list[Document] | None,
    ) -> Any:
        wishes = {**self.generation_kwargs, **(generation_kwargs or {})}
        if self.model:
            wishes.setdefault("model", self.model)
        offered = flatten_tools_or_toolsets(tools if tools is not None else self.tools)
        if offered:
            wishes["tools"] = [{"type": "function", "function": tool.tool_spec} for tool in offered]
        if documents is not None:
            wishes["documents"] = [_given(document) for document in documents]
        return wishes


class _Pieces:
    """Turns the events of one stream into Haystack's chunks, and keeps the answer."""

    answer: Answer

    def __init__(self, origin: ComponentInfo) -> None:
        self._origin = origin
        self._begun = False

    def of(self, event: Any) -> StreamingChunk | None:
        """The chunk of an event; None: it has nothing to show."""
        if isinstance(event, Answer):
            self.answer = event
            return StreamingChunk(
                content="",
                component_info=self._origin,
                index=0,
                finish_reason=event.finish_reason,
                meta=_about(event),
            )
        if not isinstance(event, AnswerDelta):
            return None
        start, self._begun = not self._begun, True
        content, calls = event.text, None
        if event.call is not None:
            name, call_id = (event.call, event.call_id) if start else (None, None)
            call = ToolCallDelta(index=0, tool_name=name, arguments=event.text, id=call_id)
            content, calls = "", [call]
        return StreamingChunk(
            content=content, component_info=self._origin, index=0, start=start, tool_calls=calls
        )


def _turns(messages: list[ChatMessage] | str) -> list[dict[str, Any]]:
    given = [ChatMessage.from_user(messages)] if isinstance(messages, str) else messages
    return [message.to_openai_dict_format() for message in given]


def _given(document: Document) -> dict[str, str]:
    """A document as the server takes it; one without content is refused there by name."""
    url = str(document.meta.get("url") or "")
    title = str(document.meta.get("title") or "")
    return {"id": document.id, "title": title, "text": document.content or "", "url": url}


def _reply(answer: Answer) -> ChatMessage:
    calls = [
        ToolCall(tool_name=call.name, arguments=json.loads(call.arguments), id=call.id)
        for call in answer.calls
        if answer.finish_reason != "length"  # its arguments are cut off; the meta says so
    ]
    text = None if calls else answer.text
    return ChatMessage.from_assistant(text, tool_calls=calls, meta=_about(answer))


def _about(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    links = answer.links or ("",) * len(answer.citations)
    return {
        "model": answer.model,
        "index": 0,
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
        "citations": [
            {**citation.model_dump(mode="json"), "link": link}
            for citation, link in zip(answer.citations, links, strict=True)
        ],
        "chunkcache": answer.report.model_dump(mode="json", exclude={"citations"}),
    }
