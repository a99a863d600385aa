"""Messages in both directions: LangChain's turns to the server, its answers to LangChain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    convert_to_openai_messages,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_client.protocol import AnswerDelta
    from langchain_core.messages.ai import UsageMetadata

    from chunkcache_client import Answer

PROVIDER = "chunkcache"


def turns_of(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """A conversation as the server takes it; what it cannot take it refuses by name."""
    return [dict(turn) for turn in convert_to_openai_messages(list(messages))]


def message_of(answer: Answer) -> AIMessage:
    """A whole answer. What it was drawn from and how exact it is stand in `response_metadata`."""
    calls, wrong = [], []
    for call in answer.calls:
        try:
            arguments = json.loads(call.arguments)
        except ValueError as error:  # cut off by max_tokens
            wrong.append(
                invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=str(error))
            )
        else:
            calls.append(tool_call(name=call.name, args=arguments, id=call.id))
    return AIMessage(
        content=answer.text,
        tool_calls=calls,
        invalid_tool_calls=wrong,
        id=answer.id,
        usage_metadata=_usage(answer),
        response_metadata=_about(answer),
    )


def chunk_of(delta: AnswerDelta, *, opens_call: bool) -> AIMessageChunk:
    """A piece of an answer, or of the arguments of its call. `opens_call`: the first of them."""
    if delta.call is None:
        return AIMessageChunk(content=delta.text)
    name, call_id = (delta.call, delta.call_id) if opens_call else (None, None)
    piece = tool_call_chunk(name=name, args=delta.text, id=call_id, index=0)
    return AIMessageChunk(content="", tool_call_chunks=[piece])


def last_chunk_of(answer: Answer) -> AIMessageChunk:
    """What is known at the end: usage and metadata."""
    return AIMessageChunk(
        content="",
        id=answer.id,
        usage_metadata=_usage(answer),
        response_metadata=_about(answer),
        chunk_position="last",
    )


def _usage(answer: Answer) -> UsageMetadata:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "input_token_details": {"cache_read": usage.cached_tokens},
    }


def _about(answer: Answer) -> dict[str, Any]:
    """`citations` have the passages and where a reader finds them, `chunkcache` the report."""
    report = answer.report.model_dump(mode="json", exclude={"citations"})
    cited = [
        {**citation.model_dump(mode="json"), "link": link}
        for citation, link in zip(
            answer.citations, answer.links or [""] * len(answer.citations), strict=True
        )
    ]
    return {
        "model_name": answer.model,
        "model_provider": PROVIDER,
        "finish_reason": answer.finish_reason,
        "citations": cited,
        "chunkcache": report,
    }
