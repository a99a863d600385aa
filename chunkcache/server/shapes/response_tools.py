"""What a response request says about tools, and about the form of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from chunkcache.filters import AttributeFilter, Comparison, Compound, Membership, excess
from chunkcache.forms import CallForm, Function, JsonForm
from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import Body, stated
from chunkcache.server.shapes.ranking import RankingOptions
from chunkcache.server.shapes.response_items import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TOOLS = 128
_MOST_FIELDS = 8  # of an object that chooses a tool
_MOST_STORES = 16  # each is searched


class FileSearchTool(Body):
    """Retrieve from these vector stores, before the answer and without asking the model."""

    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1, max_length=_MOST_STORES)
    max_num_results: int | None = Field(None, ge=1, le=50)
    ranking_options: RankingOptions | None = None
    filters: AttributeFilter | None = None

    @field_validator("filters")
    @classmethod
    def _bounded(cls, filters: Any) -> Comparison | Membership | Compound | None:
        if filters is not None and (problem := excess(filters)):
            raise stated(f"filters: {problem}")
        return filters  # type: ignore[no-any-return]  # as it was validated


class FunctionTool(Body):
    """A function of the caller's. `strict` changes nothing: arguments always follow the schema."""

    type: Literal["function"]
    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenSearch(Body):
    """The search must be done; it always is."""

    type: Literal["file_search"]


class ChosenFunction(Body):
    """The answer must be a call of this function."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """Some of the tools, and whether one of them must be used."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenSearch | ChosenFunction] = Field(min_length=1, max_length=MAX_TOOLS)

    def left(
        self, tools: Sequence[FileSearchTool | FunctionTool]
    ) -> list[FileSearchTool | FunctionTool]:
        """Those of the tools that are allowed.

        Raises:
            PydanticCustomError: it allows what is not among them.
        """
        allowed = {_key(chosen) for chosen in self.tools}
        if strange := allowed - {_key(tool) for tool in tools}:
            kind, name = min(strange)
            raise stated(f"tool_choice names {name[:64] or kind!r}, which is not among the tools")
        return [tool for tool in tools if _key(tool) in allowed]


def _key(tool: FileSearchTool | FunctionTool | ChosenSearch | ChosenFunction) -> tuple[str, str]:
    return tool.type, tool.name if isinstance(tool, FunctionTool | ChosenFunction) else ""


Tool = Annotated[
    Annotated[FileSearchTool, Tag("file_search")] | Annotated[FunctionTool, Tag("function")],
    Discriminator(
        kind_of,
        custom_error_type=UNSUPPORTED,
        custom_error_message="tools of this type are not supported; file_search and function are.",
    ),
]


def _of_few_fields(choice: Any) -> Any:
    """Each unknown field is an error for every kind of choice: a thousand are not read."""
    if isinstance(choice, dict) and len(choice) > _MOST_FIELDS:
        raise stated("tool_choice: a tool is chosen by its type and its name, and no more")
    return choice


ToolChoice = Annotated[
    Literal["auto", "none", "required"] | ChosenSearch | ChosenFunction | AllowedTools,
    BeforeValidator(_of_few_fields),
]


def call_form_of(
    tools: list[FileSearchTool | FunctionTool], choice: ToolChoice | None
) -> CallForm | None:
    """The call that must be made, if one must: a search satisfies `required` by itself.

    Raises:
        PydanticCustomError: the choice asks for what is not among the tools, or two have one name.
    """
    names = [tool.name for tool in tools if isinstance(tool, FunctionTool)]
    searches = len(tools) > len(names)
    if len(set(names)) < len(names):
        raise stated("tools: two functions have the same name")
    if isinstance(choice, AllowedTools):
        left = choice.left(tools)
        names = [tool.name for tool in left if isinstance(tool, FunctionTool)]
        searches = len(left) > len(names)
        choice = choice.mode
    if isinstance(choice, ChosenSearch) and not searches:
        raise stated("tool_choice: there is no file_search among the tools")
    if choice == "required" and not tools:
        raise stated("tool_choice 'required' asks for a tool, but there are none")
    if isinstance(choice, ChosenFunction):
        if choice.name not in names:
            raise stated(f"tool_choice names {choice.name[:64]!r}, which is not among the tools")
        names = [choice.name]
    elif choice != "required" or searches:
        return None
    functions = [
        Function(
            name=tool.name,
            description=tool.description or "",
            parameters=tool.parameters or {},
            field=f"tools.{index}.parameters",
        )
        for index, tool in enumerate(tools)
        if isinstance(tool, FunctionTool) and tool.name in names
    ]
    return CallForm(functions=tuple(functions))


class TextFormat(Body):
    """Text, any JSON object, or JSON of a schema. `strict` changes nothing: it always follows."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    wanted: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.wanted is not None):
            raise stated(f"text.format.schema belongs to the type 'json_schema', got {self.type!r}")
        return self

    def to_form(self) -> JsonForm | None:
        """The form in the service's terms."""
        if self.type == "text":
            return None
        return JsonForm(
            json_schema=self.wanted or {"type": "object"},
            description=self.description or "",
            field="text.format.schema",
        )


class TextOptions(Body):
    """How the text is to be."""

    format: TextFormat | None = None
    verbosity: str | None = Field(None, description="changes nothing")
