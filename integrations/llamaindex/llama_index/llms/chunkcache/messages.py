"""Messages, nodes and answers: LlamaIndex's to the server and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkcache_client.errors import UnsupportedField
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_client import Answer

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "developer",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


def turns_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """A conversation as the server takes it.

    Raises:
        UnsupportedField: a turn of a tool, or a block that is no text.
    """
    return [_turn(index, message) for index, message in enumerate(messages)]


def _turn(index: int, message: ChatMessage) -> dict[str, Any]:
    if message.role not in _ROLES:
        raise UnsupportedField(
            f"messages[{index}].role: got {message.role.value!r}, must be one of "
            f"{', '.join(role.value for role in _ROLES)}.",
            param="messages",
        )
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise UnsupportedField(
                f"messages[{index}].blocks: got {type(block).__name__}, must be TextBlock: the "
                "server takes text only.",
                param="messages",
            )
    return {"role": _ROLES[message.role], "content": message.content or ""}


def document_of(node: Any) -> Any:
    """A node as a document for a question, under the node's id; anything else as it is."""
    inner = node.node if isinstance(node, NodeWithScore) else node
    if not isinstance(inner, BaseNode):
        return inner
    metadata = inner.metadata
    return {
        "id": inner.node_id,
        "title": str(metadata.get("title") or metadata.get("file_name") or ""),
        "text": inner.get_content(MetadataMode.NONE),
        "url": str(metadata.get("url") or ""),
    }


def response_of(answer: Answer, delta: str | None = None) -> ChatResponse:
    """A whole answer.

    `raw` has `citations` (of nodes that were given, `document_id` is the node's id), `chunkcache`
    (`rung`, what each span got, what it cost), `model`, `finish_reason` and `usage`.
    """
    usage = answer.usage
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    links = answer.links or ("",) * len(answer.citations)
    raw = {
        "id": answer.id,
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "usage": {**counts, "prompt_tokens_details": {"cached_tokens": usage.cached_tokens}},
        "citations": [
            {**citation.model_dump(mode="json"), "link": link}
            for citation, link in zip(answer.citations, links, strict=True)
        ],
        "chunkcache": answer.report.model_dump(mode="json", exclude={"citations"}),
    }
    message = ChatMessage(role=MessageRole.ASSISTANT, content=answer.text)
    return ChatResponse(message=message, raw=raw, delta=delta, additional_kwargs=dict(counts))
