"""The turns of a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chunkcache.forms import FunctionCall
from chunkcache.protocol import Message
from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import Body, stated

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"const": "text"},
                    "text": {"type": "string"},
                    "prompt_cache_breakpoint": {"type": "object"},
                },
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}

_BREAKPOINT = "prompt_cache_breakpoint"  # a hint: what can be reused is found without


class CalledFunction(Body):
    """The function that was called."""

    name: str
    arguments: str = Field(description="JSON")


class ToolCall(Body):
    """A call that the assistant made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # what is left of a stream in some clients' histories


class ChatMessage(Body):
    """A turn. `content` may be text or a list of text parts, which are joined.

    Only an assistant's turn with calls may be without.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, WithJsonSchema(_CONTENT_SCHEMA)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    name: str | None = Field(None, description="whose turn it is; the model is not shown it")
    # What our own answers carry, so that an answer can be appended to the conversation as it is.
    refusal: None = None
    annotations: list[dict[str, Any]] | None = Field(None, max_length=1024)
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise stated("messages: content is missing; only an assistant's tool_calls need none")
        if self.tool_calls and self.role != "assistant":
            raise stated(f"messages: tool_calls are an assistant's, not of the role {self.role!r}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise stated("messages: tool_call_id belongs to the role 'tool', and to no other")
        return self

    def to_message(self) -> Message:
        """The turn in the service's terms."""
        calls = [
            FunctionCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in self.tool_calls or []
        ]
        return Message(
            role=self.role,
            content=self.content or "",
            calls=tuple(calls),
            call_id=self.tool_call_id or "",
        )

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        return joined_text(content, ("text",))


def joined_text(content: Any, kinds: Sequence[str], ignored: Sequence[str] = ()) -> Any:
    """A list of text parts as one text; what is no list is left as it is.

    Args:
        kinds: the types that a part may have.
        ignored: fields that a part may have beside its type and its text.

    Raises:
        PydanticCustomError: there is a part of another type or with other fields.
    """
    if not isinstance(content, list):
        return content
    return "".join(_part_text(part, kinds, ignored) for part in content)


def _part_text(part: Any, kinds: Sequence[str], ignored: Sequence[str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in kinds:
        shown = str(kind)[:40]
        raise PydanticCustomError(
            UNSUPPORTED,
            "content part type '{kind}' is not supported; send parts of type '{text}'.",
            {"kind": shown, "text": kinds[0]},
        )
    text = part.get("text")
    extra = sorted(set(part) - {"type", "text", _BREAKPOINT, *ignored})
    if extra or not isinstance(text, str):
        raise PydanticCustomError(
            UNSUPPORTED if extra else "text_part",
            "a text part has the fields 'type' and 'text' (a string) and no other",
        )
    return text
