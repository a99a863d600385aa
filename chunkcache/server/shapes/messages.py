"""The turns of a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import Body

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}


class ChatMessage(Body):
    """A turn. `content` may be text or a list of text parts, which are joined."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, WithJsonSchema(_CONTENT_SCHEMA)]
    name: str | None = Field(None, description="whose turn it is; the model is not shown it")
    # What our own answers carry, so that an answer can be appended to the conversation as it is.
    refusal: None = None
    annotations: list[dict[str, Any]] | None = Field(None, max_length=1024)
    audio: None = None
    function_call: None = None
    tool_calls: None = None

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
    extra = sorted(set(part) - {"type", "text", *ignored})
    if extra or not isinstance(text, str):
        raise PydanticCustomError(
            UNSUPPORTED if extra else "text_part",
            "a text part has the fields 'type' and 'text' (a string) and no other",
        )
    return text
