"""What a request says about the form of its answer: JSON, or calls of functions.

`tools` are taken whatever `tool_choice` says. A model is free not to call where it need not, and it
does not: then the functions are not shown to it, and a note in the response says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from chunkcache.forms import CallForm, Function, JsonForm
from chunkcache.protocol import Json
from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import Body, stated

MAX_TOOLS = 128
_Name = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchema(Body):
    """A schema, and what the model is told of it.

    `strict` changes nothing: the answer always follows the schema. Nor does `name`, nor what the
    schema says in its own descriptions, which the model is not shown.
    """

    name: str = ""
    description: str | None = None
    wanted: Json = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise stated(
                f"response_format.json_schema belongs to the type 'json_schema', got {self.type!r}"
            )
        return self

    def to_form(self) -> JsonForm | None:
        """The form in the service's terms."""
        if self.type == "text":
            return None
        if self.json_schema is None:
            return JsonForm(json_schema={"type": "object"}, field="response_format")
        field = "response_format.json_schema.schema"
        told = self.json_schema.description or ""
        return JsonForm(json_schema=self.json_schema.wanted, description=told, field=field)


class ToolFunction(Body):
    """A function. `strict` changes nothing: arguments always follow the schema."""

    name: _Name
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Body):
    """Functions are the only tools."""

    type: Literal["function"]
    function: ToolFunction


class ChosenFunction(Body):
    """A function by its name."""

    name: str


class ChosenTool(Body):
    """A tool by its name."""

    type: Literal["function"]
    function: ChosenFunction


class AllowedTools(Body):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[ChosenTool] = Field(min_length=1, max_length=MAX_TOOLS)


_NAMED_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        },
    },
    "required": ["type", "function"],
}
_CHOICE_SCHEMA: Json = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _NAMED_SCHEMA,
        {
            "type": "object",
            "properties": {
                "type": {"const": "allowed_tools"},
                "allowed_tools": {
                    "type": "object",
                    "properties": {
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {"type": "array", "minItems": 1, "items": _NAMED_SCHEMA},
                    },
                    "required": ["mode", "tools"],
                },
            },
            "required": ["type", "allowed_tools"],
        },
    ]
}


class ToolChoice(Body):
    """Whether a call must be made, and of what. A word alone stands for the type."""

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    function: ChosenFunction | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        for name in ("function", "allowed_tools"):
            if (self.type == name) != (getattr(self, name) is not None):
                raise stated(f"tool_choice.{name} belongs to the type {name!r}, got {self.type!r}")
        return self

    def wanted(self, names: list[str]) -> list[str]:
        """Those of the tools of which one must be called; none where none must.

        Raises:
            PydanticCustomError: it asks for what is not among the tools.
        """
        if self.function is not None:
            asked = [self.function.name]
        elif self.allowed_tools is not None:
            asked = [tool.function.name for tool in self.allowed_tools.tools]
        else:
            asked = names if self.type == "required" else []
        if self.type == "required" and not names:
            raise stated("tool_choice 'required' asks for a call, but there are no tools")
        if strange := [name for name in asked if name not in names]:
            raise stated(f"tool_choice names {strange[0][:64]!r}, which is not among the tools")
        is_free = self.allowed_tools is not None and self.allowed_tools.mode == "auto"
        return [] if is_free else asked


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoiceField = Annotated[ToolChoice, WithJsonSchema(_CHOICE_SCHEMA)]


def call_form(tools: list[Tool], choice: ToolChoice | None) -> CallForm | None:
    """The call that must be made, if one must.

    Raises:
        PydanticCustomError: the choice asks for what is not among the tools, or two have one name.
    """
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise stated("tools: two functions have the same name")
    wanted = choice.wanted(names) if choice is not None else []
    functions = [
        Function(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters=tool.function.parameters or {},
            field=f"tools.{index}.function.parameters",
        )
        for index, tool in enumerate(tools)
        if tool.function.name in wanted
    ]
    return CallForm(functions=tuple(functions)) if functions else None


def _refuse_legacy(value: Any) -> None:
    if value is not None:
        raise PydanticCustomError(UNSUPPORTED, "superseded by tools and tool_choice; send those.")


Legacy = Annotated[None, BeforeValidator(_refuse_legacy), WithJsonSchema({"type": "null"})]
"""A field that `tools` has superseded."""
