"""What the input of a response is made of: messages, and what earlier answers put out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema, field_validator

from chunkcache.forms import FunctionCall
from chunkcache.protocol import Message
from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import Body
from chunkcache.server.shapes.messages import joined_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_KINDS = ("input_text", "output_text", "text")
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"enum": ["input_text", "output_text"]},
                    "text": {"type": "string"},
                },
                "required": ["type", "text"],
            },
        },
    ]
}


class InputMessage(Body):
    """A turn among the input; what an answer put out can be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, WithJsonSchema(_CONTENT_SCHEMA)]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        return joined_text(content, _KINDS, ignored=("annotations", "logprobs"))


class FileSearchCall(Body):
    """An item of an earlier answer, sent back with the conversation; its passages are not kept."""

    type: Literal["file_search_call"]
    id: str | None = None
    status: str | None = None
    queries: list[str] | None = Field(None, max_length=64)
    results: list[Any] | None = Field(None, max_length=64)


class FunctionCallItem(Body):
    """A call that an earlier answer consisted of."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = Field(description="JSON")
    id: str | None = None
    status: str | None = None


class FunctionCallOutput(Body):
    """What the caller's function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[str, WithJsonSchema(_CONTENT_SCHEMA)]
    id: str | None = None
    status: str | None = None

    @field_validator("output", mode="before")
    @classmethod
    def _join_parts(cls, output: Any) -> Any:
        return joined_text(output, _KINDS)


def kind_of(item: Any) -> str | None:
    """The type of an item or a tool, by which it is told from others; a message needs none."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FileSearchCall, Tag("file_search_call")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(
        kind_of,
        custom_error_type=UNSUPPORTED,
        custom_error_message="items of this type are not supported; send messages.",
    ),
]


def turns_of(
    items: Sequence[InputMessage | FileSearchCall | FunctionCallItem | FunctionCallOutput],
) -> list[Message]:
    """Items as turns: calls belong to the assistant's turn before them, searches to none."""
    turns: list[Message] = []
    for item in items:
        if isinstance(item, InputMessage):
            turns.append(Message(role=item.role, content=item.content))
        elif isinstance(item, FunctionCallItem):
            call = FunctionCall(name=item.name, arguments=item.arguments, id=item.call_id)
            if turns and turns[-1].role == "assistant":
                last = turns.pop()
            else:
                last = Message(role="assistant", content="")
            turns.append(last.model_copy(update={"calls": (*last.calls, call)}))
        elif isinstance(item, FunctionCallOutput):
            turns.append(Message(role="tool", content=item.output, call_id=item.call_id))
    return turns
