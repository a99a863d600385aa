"""The turns of a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import Body

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
    # What our own answers carry, so that an answer can be appended to the conversation as it is.
    refusal: None = None
    annotations: list[dict[str, Any]] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        return "".join(map(_part_text, content)) if isinstance(content, list) else content


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        shown = str(kind)[:40]
        raise PydanticCustomError(
            UNSUPPORTED,
            "content part type '{kind}' is not supported; send parts of type 'text'.",
            {"kind": shown},
        )
    text = part.get("text")
    extra = sorted(set(part) - {"type", "text"})
    if extra or not isinstance(text, str):
        raise PydanticCustomError(
            UNSUPPORTED if extra else "text_part",
            "a text part has the fields 'type' and 'text' (a string) and no other",
        )
    return text
