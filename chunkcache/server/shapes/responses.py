"""The request of `POST /v1/responses`: what is accepted, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from chunkcache.errors import InvalidRequest
from chunkcache.protocol import AnswerRequest, Message
from chunkcache.server.shapes.body import Body, stated
from chunkcache.server.shapes.generation import Neutral, SampledRequest
from chunkcache.server.shapes.response_items import InputItem, turns_of
from chunkcache.server.shapes.response_tools import (
    MAX_TOOLS,
    AllowedTools,
    FileSearchTool,
    FunctionTool,
    TextOptions,
    Tool,
    ToolChoice,
    call_form_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.forms import CallForm, JsonForm
    from chunkcache.server.model_names import ChatModel

_DEFAULT_TOP_K = 4  # of a file search, where the settings retrieve nothing by themselves
_RESULTS = "file_search_call.results"
_NOTES = {
    "functions": "tools: functions were not offered to the model, which answers in text. Send "
    "tool_choice 'required' or a function's name for a call",
    "reasoning": "reasoning changes nothing: the model does not reason apart",
    "verbosity": "text.verbosity changes nothing: say in the prompt how long the answer should be",
}


class Reasoning(Body):
    """A hint to models that reason; changes nothing."""

    context: str | None = None
    effort: str | None = None
    mode: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseStreamOptions(Body):
    """Nothing can be chosen."""

    include_obfuscation: Literal[False] = False


class ResponseRequest(SampledRequest):
    """`POST /v1/responses`, and how other engines let tokens be drawn. A null is the default."""

    NEUTRAL: ClassVar[Neutral] = {
        "background": (False,),
        "context_management": (),
        "conversation": (),
        "moderation": (),
        "prompt": (),
        "service_tier": ("auto", "default"),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: list[InputItem] = Field(
        min_length=1, max_length=4096, description="a text, or a list of messages"
    )
    instructions: str | None = Field(None, description="system text, for this answer alone")
    previous_response_id: str | None = None
    store: bool | None = Field(True, description="whether it can be read or gone on from later")
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = "auto"
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
        turns = self.turns()
        if not turns:
            raise stated("input: there is no message in it")
        if turns[-1].role not in {"user", "tool"}:
            raise stated("input: the last item must be a user's message or a function's output")
        searches = [tool for tool in self.tools or [] if isinstance(tool, FileSearchTool)]
        if len(searches) > 1:
            raise stated("tools: more than one file_search; send one of them")
        if call_form_of(self.tools or [], self.tool_choice) and self._json_form():
            raise stated("text.format and a call that tool_choice forces exclude each other")
        if self.form is not None and (self.ignore_eos or self.min_tokens):
            raise stated("ignore_eos and min_tokens cannot be had with JSON or a forced call")
        options = self.chunkcache
        named = options is not None and options.vector_store_id is not None
        if searches and (self.documents is not None or named):
            raise stated("tools: file_search replaces documents and chunkcache.vector_store_id")
        return self

    @property
    def stores_not_searched(self) -> list[str]:
        """Vector stores of a search that `tool_choice` rules out."""
        searches = [tool for tool in self.tools or [] if isinstance(tool, FileSearchTool)]
        if self.file_search is not None:
            return []
        return [store for tool in searches for store in tool.vector_store_ids]

    @property
    def file_search(self) -> FileSearchTool | None:
        """The search that is to be done."""
        tools: Sequence[FileSearchTool | FunctionTool] = self.tools or []
        if self.tool_choice == "none":
            return None
        if isinstance(self.tool_choice, AllowedTools):
            tools = self.tool_choice.left(tools)
        return next((tool for tool in tools if isinstance(tool, FileSearchTool)), None)

    @property
    def _shuts_out_search(self) -> bool:
        """Whether there are tools, and none may look anything up."""
        searches = any(isinstance(tool, FileSearchTool) for tool in self.tools or [])
        return bool(self.tools) and (
            self.tool_choice == "none" or (searches and self.file_search is None)
        )

    @property
    def wants_results(self) -> bool:
        """Whether the item of the search is to carry what was found."""
        return _RESULTS in (self.include or [])

    @property
    def form(self) -> JsonForm | CallForm | None:
        """What the answer must look like; None: any text."""
        return call_form_of(self.tools or [], self.tool_choice) or self._json_form()

    def _json_form(self) -> JsonForm | None:
        return self.text.format.to_form() if self.text and self.text.format else None

    def _notes(self) -> tuple[str, ...]:
        reasoning = self.reasoning or Reasoning()
        verbosity = self.text.verbosity if self.text else None
        functions = any(isinstance(tool, FunctionTool) for tool in self.tools or [])
        taken = {
            "functions": functions
            and self.tool_choice != "none"
            and not call_form_of(self.tools or [], self.tool_choice),
            "reasoning": reasoning.effort not in (None, "none") or reasoning.mode == "pro",
            "verbosity": verbosity not in (None, "medium"),
        }
        return tuple(_NOTES[name] for name, said in taken.items() if said)

    def turns(self) -> list[Message]:
        """The new turns of the conversation, `instructions` not among them."""
        return turns_of(self.input)

    def to_answer_request(
        self, tenant: str, model: ChatModel, earlier: Sequence[Message], default_top_k: int
    ) -> AnswerRequest:
        """The same wish in the service's terms, after the turns of an earlier response.

        Raises:
            InvalidRequest: it asks for passages from a model that never retrieves, or nobody asks.
        """
        opening = [Message(role="system", content=self.instructions)] if self.instructions else []
        messages = [*opening, *earlier, *self.turns()]
        if all(message.role != "user" for message in messages):
            raise InvalidRequest(
                "input: there is no message of a user's. Hint: send the conversation, or "
                "previous_response_id.",
                param="input",
            )
        asked = self._asked(messages, self._sampling(self.max_output_tokens), tenant, model)
        asked = asked.model_copy(update={"form": self.form})
        search = self.file_search
        if search is None:
            is_shut_out = self._shuts_out_search and self.documents is None
            return asked.model_copy(update={"top_k": 0}) if is_shut_out else asked
        if not model.retrieves:
            raise InvalidRequest.of(
                "tools", "file_search", f"left out with the model {model.id!r}, it never retrieves",
                "choose the model without its suffix",
            )  # fmt: skip
        ranking = search.ranking_options
        wanted = (asked.top_k, search.max_num_results, default_top_k, _DEFAULT_TOP_K)
        return asked.model_copy(
            update={
                "collection": search.vector_store_ids[0],
                "also": tuple(search.vector_store_ids[1:]),
                "top_k": next(number for number in wanted if number),
                "filters": search.filters,
                "ranking": ranking.to_ranking() if ranking else None,
            }
        )
