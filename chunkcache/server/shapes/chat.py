"""The chat completion request: what is accepted, and nothing else.

A field that is not listed here is refused by name, except where its value says to do nothing
(`frequency_penalty: 0`, as many chat applications always send). Two names differ from what one
might guess:
`temperature` defaults to 0 (greedy: the same question gives the same cited answer), not to 1; and
`top_k` is the sampling cut-off, as in vLLM, while the number of passages is `chunkcache.top_k`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from chunkcache.protocol import (
    AnswerRequest,
    ChunkCacheOptions,
    GivenDocument,
    Message,
    Sampling,
)
from chunkcache.server.shapes.body import Body, JsonBody, stated
from chunkcache.server.shapes.messages import ChatMessage

DEFAULT_COLLECTION = "default"
_StopText = Annotated[str, Field(min_length=1)]
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
"""Fields we do not support and the values that ask for nothing; null asks for nothing too."""


class StreamOptions(Body):
    """Whether the stream ends with a usage chunk."""

    include_usage: bool = False


class ResponseFormat(Body):
    """Plain text is the only format."""

    type: Literal["text"]


class ChatRequest(JsonBody):
    """`POST /v1/chat/completions`. A null stands for the default."""

    model: str | None = Field(None, description="null: the one that is served")
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="same as max_completion_tokens"
    )
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0.0, le=2.0, description="null: 0, greedy")
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0, lt=2**31, description="sampling cut-off; 0: none")
    n: Literal[1] | None = 1
    stop: _StopText | Annotated[list[_StopText], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None
    user: str | None = Field(None, description="a label of the caller's; changes nothing")
    metadata: dict[str, str] | None = Field(None, description="labels; change nothing")
    prompt_cache_key: str | None = Field(
        None, description="a routing hint; one server has nowhere to route, so it changes nothing"
    )
    documents: list[GivenDocument] | None = Field(
        None, description="used instead of retrieval, in this order"
    )
    chunkcache: ChunkCacheOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if name not in _NEUTRAL or not (value is None or value in _NEUTRAL[name])
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise stated("max_tokens and max_completion_tokens differ; send one of them")
        if self.stream_options is not None and not self.stream:
            raise stated("stream_options is only allowed with stream=true")
        if self.messages[-1].role != "user":
            raise stated("messages: the last one must have the role 'user'")
        options = self.chunkcache
        if self.documents is not None and options is not None:
            for name in ("vector_store_id", "top_k"):
                if getattr(options, name) is not None:
                    raise stated(f"documents replaces retrieval; leave out chunkcache.{name}")
        return self

    def to_answer_request(self, tenant: str) -> AnswerRequest:
        """The same wish in the service's terms. The tenant comes from the API key."""
        options = self.chunkcache or ChunkCacheOptions()
        return AnswerRequest(
            messages=[Message(role=m.role, content=m.content) for m in self.messages],
            documents=self.documents,
            tenant=tenant,
            collection=options.vector_store_id or DEFAULT_COLLECTION,
            top_k=options.top_k,
            sampling=self._sampling(),
            options=options,
        )

    def _sampling(self) -> Sampling:
        wishes = {
            "stop": (self.stop,) if isinstance(self.stop, str) else self.stop,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
        }
        said = {name: value for name, value in wishes.items() if value is not None}
        return Sampling.model_validate(said)
