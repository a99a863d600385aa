"""The request of `POST /v1/responses`: what is accepted, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, WithJsonSchema, field_validator, model_validator

from chunkcache.errors import InvalidRequest
from chunkcache.filters import AttributeFilter, Comparison, Compound, Membership, excess
from chunkcache.protocol import AnswerRequest, Message, Sampling
from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import Body, stated
from chunkcache.server.shapes.generation import AnyRequest, Neutral
from chunkcache.server.shapes.messages import joined_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.server.model_names import ChatModel

_DEFAULT_TOP_K = 4  # of a file search, where the settings retrieve nothing by themselves
_RESULTS = "file_search_call.results"
_NOTES = {
    "functions": "tools: functions are not called here, the model answers in text",
    "effort": "reasoning changes nothing: the model does not reason apart",
    "verbosity": "text.verbosity changes nothing: say in the prompt how long the answer should be",
}


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
        kinds = ("input_text", "output_text", "text")
        return joined_text(content, kinds, ignored=("annotations", "logprobs"))


class FileSearchCall(Body):
    """An item of an earlier answer, sent back with the conversation; its passages are not kept."""

    type: Literal["file_search_call"]
    id: str | None = None
    status: str | None = None
    queries: list[str] | None = Field(None, max_length=64)
    results: list[Any] | None = Field(None, max_length=64)


class RankingOptions(Body):
    """There is one ranking, and it cuts nothing off."""

    ranker: str | None = None
    score_threshold: Annotated[float, Field(ge=0.0, le=0.0)] | None = None


class FileSearchTool(Body):
    """Retrieve from this vector store, before the answer and without asking the model."""

    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1, max_length=1)
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
    """A function of the caller's, which is never called."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(Body):
    """Plain text is the only format."""

    type: Literal["text"]


class TextOptions(Body):
    """How the text is to be."""

    format: TextFormat | None = None
    verbosity: str | None = Field(None, description="changes nothing")


class Reasoning(Body):
    """A hint to models that reason; changes nothing."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseStreamOptions(Body):
    """Nothing can be chosen."""

    include_obfuscation: Literal[False] = False


class ChosenTool(Body):
    """The tool that must be used: the search, which always is."""

    type: Literal["file_search"]


def _kind(item: Any) -> str | None:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else "message"


_Item = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[FileSearchCall, Tag("file_search_call")],
    Discriminator(
        _kind,
        custom_error_type=UNSUPPORTED,
        custom_error_message="items of this type are not supported; send messages.",
    ),
]
_Tool = Annotated[
    Annotated[FileSearchTool, Tag("file_search")] | Annotated[FunctionTool, Tag("function")],
    Discriminator(
        _kind,
        custom_error_type=UNSUPPORTED,
        custom_error_message="tools of this type are not supported; 'file_search' is.",
    ),
]


class ResponseRequest(AnyRequest):
    """`POST /v1/responses`. A null stands for the default."""

    NEUTRAL: ClassVar[Neutral] = {
        "background": (False,),
        "conversation": (),
        "prompt": (),
        "service_tier": ("auto", "default"),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: list[_Item] = Field(
        min_length=1, max_length=4096, description="a text, or a list of messages"
    )
    instructions: str | None = Field(None, description="system text, for this answer alone")
    previous_response_id: str | None = None
    store: bool | None = Field(True, description="whether it can be read or gone on from later")
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    tools: list[_Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = "auto"
    include: list[str] | None = Field(None, max_length=32)
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    stream_options: ResponseStreamOptions | None = None
    max_tool_calls: int | None = Field(None, ge=1, description="there is at most one")
    parallel_tool_calls: bool | None = Field(None, description="changes nothing")

    @field_validator("input", mode="before")
    @classmethod
    def _text_as_item(cls, given: Any) -> Any:
        return [{"role": "user", "content": given}] if isinstance(given, str) else given

    @field_validator("include")
    @classmethod
    def _includable(cls, names: list[str] | None) -> list[str] | None:
        if names and "message.output_text.logprobs" in names:
            raise stated("include: 'message.output_text.logprobs' is not supported here")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self._messages()[-1:] and self._messages()[-1].role != "user":
            raise stated("input: the last message must have the role 'user'")
        if not self._messages():
            raise stated("input: there is no message in it")
        searches = [tool for tool in self.tools or [] if isinstance(tool, FileSearchTool)]
        if len(searches) > 1:
            raise stated("tools: more than one file_search; send one of them")
        if self.tool_choice not in (None, "auto", "none") and not searches:
            raise stated(
                "tool_choice: a tool can only be required if it is file_search, and among tools"
            )
        options = self.chunkcache
        if searches and (self.documents is not None or (options and options.vector_store_id)):
            raise stated("tools: file_search replaces documents and chunkcache.vector_store_id")
        return self

    @property
    def file_search(self) -> FileSearchTool | None:
        """The search that is to be done."""
        if self.tool_choice == "none":
            return None
        return next((t for t in self.tools or [] if isinstance(t, FileSearchTool)), None)

    @property
    def wants_results(self) -> bool:
        """Whether the item of the search is to carry what was found."""
        return _RESULTS in (self.include or [])

    def _notes(self) -> tuple[str, ...]:
        effort = self.reasoning.effort if self.reasoning else None
        verbosity = self.text.verbosity if self.text else None
        functions = any(isinstance(tool, FunctionTool) for tool in self.tools or [])
        taken = {
            "functions": functions and self.tool_choice != "none",
            "effort": effort not in (None, "none"),
            "verbosity": verbosity not in (None, "medium"),
        }
        return tuple(_NOTES[name] for name, said in taken.items() if said)

    def turns(self) -> list[Message]:
        """The new turns of the conversation, `instructions` not among them."""
        return [Message(role=m.role, content=m.content) for m in self._messages()]

    def to_answer_request(
        self, tenant: str, model: ChatModel, earlier: Sequence[Message], default_top_k: int
    ) -> AnswerRequest:
        """The same wish in the service's terms, after the turns of an earlier response.

        Raises:
            InvalidRequest: it asks for passages from a model that never retrieves.
        """
        opening = [Message(role="system", content=self.instructions)] if self.instructions else []
        wishes = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_output_tokens,
        }
        said = {name: value for name, value in wishes.items() if value is not None}
        messages = [*opening, *earlier, *self.turns()]
        asked = self._asked(messages, Sampling.model_validate(said), tenant, model)
        search = self.file_search
        if search is None:
            stays_out = self.tool_choice == "none" and self.tools and self.documents is None
            return asked.model_copy(update={"top_k": 0}) if stays_out else asked
        if not model.retrieves:
            raise InvalidRequest.of(
                "tools", "file_search", f"left out with the model {model.id!r}, it never retrieves",
                "choose the model without its suffix",
            )  # fmt: skip
        wanted = (asked.top_k, search.max_num_results, default_top_k, _DEFAULT_TOP_K)
        return asked.model_copy(
            update={
                "collection": search.vector_store_ids[0],
                "top_k": next(number for number in wanted if number),
                "filters": search.filters,
            }
        )

    def _messages(self) -> list[InputMessage]:
        return [item for item in self.input if isinstance(item, InputMessage)]
