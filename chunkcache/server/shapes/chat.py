"""The chat completion request: what is accepted, and nothing else.

A field that is not listed here is refused by name, except where its value says to do nothing
(`frequency_penalty: 0`, as many chat applications always send). Two names differ from what one
might guess:
`temperature` defaults to 0 (greedy: the same question gives the same cited answer), not to 1; and
`top_k` is the sampling cut-off, as in vLLM, while the number of passages is `chunkcache.top_k`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from chunkcache.protocol import AnswerRequest, Message
from chunkcache.server.shapes.body import Body, stated
from chunkcache.server.shapes.generation import GenerationRequest, Neutral
from chunkcache.server.shapes.messages import ChatMessage

if TYPE_CHECKING:
    from chunkcache.server.model_names import ChatModel

_NOTES = {
    "name": "messages[].name changes nothing: the model is not shown names",
    "store": "store changes nothing: only /v1/responses keeps answers",
    "reasoning_effort": "reasoning_effort changes nothing: the model does not reason apart",
    "verbosity": "verbosity changes nothing: say in the prompt how long the answer should be",
}


class ResponseFormat(Body):
    """Plain text is the only format."""

    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`. A null stands for the default."""

    NEUTRAL: ClassVar[Neutral] = {
        **GenerationRequest.NEUTRAL,
        "logprobs": (False,),
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "web_search_options": ({},),
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="same as max_tokens"
    )
    response_format: ResponseFormat | None = None
    store: bool | None = Field(None, description="changes nothing; /v1/responses keeps answers")
    prediction: dict[str, Any] | None = Field(None, description="a hint; changes nothing")
    reasoning_effort: str | None = Field(None, description="changes nothing: there is no reasoning")
    verbosity: str | None = Field(None, description="changes nothing")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise stated("max_tokens and max_completion_tokens differ; send one of them")
        if self.messages[-1].role != "user":
            raise stated("messages: the last one must have the role 'user'")
        return self

    def _notes(self) -> tuple[str, ...]:
        taken = {
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
        messages = [Message(role=m.role, content=m.content) for m in self.messages]
        sampling = self._sampling(self.max_completion_tokens or self.max_tokens)
        return self._asked(messages, sampling, tenant, model)
