"""The question and its wishes → the body of a chat completion request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..keep import Keep
from ..protocol import GivenDocument, Message
from .calls import Call

if TYPE_CHECKING:
    from ..policy_names import PassageOrder, RepairPolicyName
    from ..protocol import Json

Question = str | Sequence[Message | Mapping[str, Any]]
"""The question alone, or a conversation whose last turn is the question."""
Documents = Sequence[str | GivenDocument | Mapping[str, str]]


class Wishes(TypedDict, total=False):
    """What may be said beside the question. What is left out, or None, is the server's to choose.

    `top_k`, `vector_store_id`, `mode`, `policy`, `budget`, `cfo_alpha`, `exactness`, `order`,
    `match_messages` and `keep` are those of `ChunkCacheOptions`; `top_k` passages are retrieved
    (0: none) and `documents` are used instead of retrieval. Forms and tools are OpenAI's objects.
    """

    documents: Documents | None
    top_k: int | None
    vector_store_id: str | None
    mode: Literal["auto", "exact", "full"] | None
    policy: RepairPolicyName | None
    budget: float | None
    cfo_alpha: float | None
    exactness: Mapping[str, float] | None
    order: PassageOrder | None
    match_messages: bool | None
    keep: Keep | None
    model: str | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    min_tokens: int | None
    ignore_eos: bool | None
    stop: str | Sequence[str] | None
    seed: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    response_format: Json | None
    tools: Sequence[Json] | None
    tool_choice: str | Json | None
    parallel_tool_calls: bool | None


_OPTIONS = (
    "top_k",
    "vector_store_id",
    "mode",
    "policy",
    "budget",
    "cfo_alpha",
    "exactness",
    "order",
    "match_messages",
    "keep",
)


def chat_call(question: Question, wishes: Wishes, *, stream: bool = False) -> Call:
    """The request for an answer. Asking twice costs twice, so it is not repeatable.

    Raises:
        TypeError: a wish that there is not, as a wrong keyword of any function.
    """
    for name in wishes:
        if name not in Wishes.__annotations__:
            raise TypeError(f"there is no wish {name!r}; there are {', '.join(sorted(_names()))}")
    said: Json = {name: value for name, value in wishes.items() if value is not None}
    options = {name: said.pop(name) for name in _OPTIONS if name in said}
    body: Json = {**said, "messages": _messages(question)}
    if "documents" in said:
        body["documents"] = [document_of(document) for document in said["documents"]]
    if "tools" in said:
        body["tools"] = list(said["tools"])
    if "stop" in said and not isinstance(said["stop"], str):
        body["stop"] = list(said["stop"])
    if "logit_bias" in said:
        body["logit_bias"] = {str(token): bias for token, bias in said["logit_bias"].items()}
    if isinstance(options.get("keep"), Keep):
        options["keep"] = options["keep"].model_dump(exclude_none=True)
    if options:
        body["chunkcache"] = options
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Call("POST", "/v1/chat/completions", body, repeatable=False)


def _names() -> set[str]:
    return set(Wishes.__annotations__)


def _messages(question: Question) -> list[Json]:
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    return [_message(m) if isinstance(m, Message) else dict(m) for m in question]


def _message(message: Message) -> Json:
    """A turn as OpenAI's API has it."""
    turn: Json = {"role": message.role, "content": message.content}
    if message.calls:
        turn["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.calls
        ]
    if message.role == "tool":
        turn["tool_call_id"] = message.call_id
    return turn


def document_of(document: str | GivenDocument | Mapping[str, str]) -> Json:
    """A document as request bodies have it."""
    if isinstance(document, str):
        return {"text": document}
    return document.model_dump() if isinstance(document, GivenDocument) else dict(document)
