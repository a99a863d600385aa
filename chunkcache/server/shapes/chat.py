"""The chat completion request: what is accepted, and nothing else.

A field that is not listed here is refused by name, except where its value says to do nothing
(`web_search_options: {}`, as some chat applications always send). Two names differ from what one
might guess:
`temperature` defaults to 0 (greedy: the same question gives the same cited answer), not to 1; and
`top_k` is the sampling cut-off, as in vLLM, while the number of passages is `chunkcache.top_k`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from chunkcache.forms import CallForm, JsonForm
from chunkcache.protocol import MAX_LOGPROBS, AnswerRequest
from chunkcache.server.shapes.body import stated
from chunkcache.server.shapes.form import (
    Legacy,
    ResponseFormat,
    ToolChoiceField,
    Tools,
    call_form,
)
from chunkcache.server.shapes.generation import GenerationRequest, Neutral
from chunkcache.server.shapes.messages import ChatMessage

if TYPE_CHECKING:
    from chunkcache.server.model_names import ChatModel

_NOTES = {
    "tools": "tools: they were not offered to the model, which answers in text. Send tool_choice "
    "'required' or a function's name for a call",
    "name": "messages[].name changes nothing: the model is not shown names",
    "store": "store changes nothing: only /v1/responses keeps answers",
    "reasoning_effort": "reasoning_effort changes nothing: the model does not reason apart",
    "verbosity": "verbosity changes nothing: say in the prompt how long the answer should be",
}


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`. A null stands for the default."""

    NEUTRAL: ClassVar[Neutral] = {
        **GenerationRequest.NEUTRAL,
        "audio": (),
        "functions": ([],),
        "function_call": ("none",),
        "modalities": (["text"],),
        "moderation": (),
        "service_tier": ("auto", "default"),
        "web_search_options": ({},),
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="same as max_tokens"
    )
    logprobs: bool | None = Field(
        None, description="of the model itself, before penalties, temperature and cuts"
    )
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = Field(None, description="there is at most one call")
    functions: Legacy = None
    function_call: Legacy = None
    store: bool | None = Field(None, description="changes nothing; /v1/responses keeps answers")
    prediction: dict[str, Any] | None = Field(None, description="a hint; changes nothing")
    reasoning_effort: str | None = Field(None, description="changes nothing: there is no reasoning")
    verbosity: str | None = Field(None, description="changes nothing")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise stated("max_tokens and max_completion_tokens differ; send one of them")
        if self.messages[-1].role not in {"user", "tool"}:
            raise stated("messages: the last one must have the role 'user' or 'tool'")
        if all(message.role != "user" for message in self.messages):
            raise stated("messages: one must have the role 'user'")
        if self.top_logprobs and not self.logprobs:
            raise stated("top_logprobs is only allowed with logprobs=true")
        self._check_form()
        return self

    def _check_form(self) -> None:
        form, asked = self.form, self.response_format
        if isinstance(form, CallForm) and asked is not None and asked.type != "text":
            raise stated("response_format and a call that tool_choice forces exclude each other")
        if form is not None and (self.ignore_eos or self.min_tokens):
            raise stated(
                "ignore_eos and min_tokens cannot be had with a JSON answer or a forced call"
            )

    @property
    def form(self) -> JsonForm | CallForm | None:
        """What the answer must look like; None: any text."""
        call = call_form(self.tools or [], self.tool_choice)
        return call or (self.response_format.to_form() if self.response_format else None)

    @property
    def call_finish_reason(self) -> Literal["stop", "tool_calls"]:
        """How an answer ends that is a call: as OpenAI's, which tells those named from others."""
        is_named = self.tool_choice is not None and self.tool_choice.type == "function"
        return "stop" if is_named else "tool_calls"

    def _notes(self) -> tuple[str, ...]:
        is_off = self.tool_choice is not None and self.tool_choice.type == "none"
        taken = {
            "tools": self.tools and not is_off and not isinstance(self.form, CallForm),
            "name": any(message.name for message in self.messages),
            "store": self.store,
            "reasoning_effort": self.reasoning_effort not in (None, "none"),
            "verbosity": self.verbosity not in (None, "medium"),
        }
        return tuple(_NOTES[name] for name, said in taken.items() if said)

    def to_answer_request(self, tenant: str, model: ChatModel) -> AnswerRequest:
        """The same wish in the service's terms. The tenant comes from the API key.

        Raises:
            InvalidRequest: it asks for passages from a model that never retrieves.
        """
        messages = [message.to_message() for message in self.messages]
        sampling = self._sampling(self.max_completion_tokens or self.max_tokens)
        if self.logprobs:
            sampling = sampling.model_copy(update={"logprobs": self.top_logprobs or 0})
        asked = self._asked(messages, sampling, tenant, model)
        return asked.model_copy(update={"form": self.form})
