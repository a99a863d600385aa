"""What every request for generated text may say, in whatever shape it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from chunkcache.keep import Keep
from chunkcache.protocol import (
    MAX_BIASES,
    MAX_CHOICES,
    AnswerRequest,
    ChunkCacheOptions,
    Exactness,
    GivenDocument,
    Message,
    Sampling,
)
from chunkcache.server.shapes.body import Body, JsonBody, stated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.server.model_names import ChatModel

DEFAULT_COLLECTION = "default"
Neutral = dict[str, tuple[object, ...]]
_StopText = Annotated[str, Field(min_length=1)]
_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4},
    ]
}


def _is_among(value: Any, values: tuple[object, ...]) -> bool:
    """Python's `in`, but for it 1 is `true`."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Stops = Annotated[
    list[_StopText], BeforeValidator(_as_list), Field(max_length=4), WithJsonSchema(_STOP_SCHEMA)
]


class StreamOptions(Body):
    """Where a stream says the usage."""

    include_usage: bool = Field(
        False, description="in an extra last chunk without choices; else in the last with one"
    )
    continuous_usage_stats: bool = Field(False, description="so far, in every chunk; as in vLLM")
    include_obfuscation: Literal[False] = False


class HttpKeep(Body, Keep):
    """On what terms KV is kept, as JSON."""


class HttpExactness(Body, Exactness):
    """How exact an answer must be at least, as JSON."""


class HttpOptions(Body, ChunkCacheOptions):
    """The `chunkcache` object of a request: wishes about exactness, and how citations are shown."""

    exactness: HttpExactness | None = Field(None, description="a drift target, not a budget")
    keep: HttpKeep | None = Field(
        None, description="on what terms KV made for it is kept; its retention stays normal here"
    )
    citations: Literal["annotations", "text"] | None = Field(
        None,
        description="text: sources are also listed after the answer, for clients that drop "
        "annotations; null: as server.citations says",
    )


class AnyRequest(JsonBody):
    """Fields of every request for text, and what asks for nothing. A null is the default."""

    NEUTRAL: ClassVar[Neutral] = {}
    """Fields we do not support and the values that ask for nothing; null asks for nothing too."""

    model: str | None = Field(None, description="null: the one that is served")
    temperature: float | None = Field(None, ge=0.0, le=2.0, description="null: 0, greedy")
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    stream: bool | None = False
    user: str | None = Field(None, description="a label of the caller's; changes nothing")
    safety_identifier: str | None = Field(None, description="likewise")
    metadata: dict[str, str] | None = Field(None, description="labels; change nothing")
    prompt_cache_key: str | None = Field(
        None, description="a routing hint; one server has nowhere to route, so it changes nothing"
    )
    prompt_cache_retention: str | None = Field(None, description="a hint; changes nothing")
    prompt_cache_options: dict[str, Any] | None = Field(None, description="likewise")
    documents: list[GivenDocument] | None = Field(
        None, max_length=1024, description="used instead of retrieval, in this order"
    )
    chunkcache: HttpOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if name not in cls.NEUTRAL or not (value is None or _is_among(value, cls.NEUTRAL[name]))
        }

    @model_validator(mode="after")
    def _one_source_of_passages(self) -> Self:
        options = self.chunkcache
        if self.documents is not None and options is not None:
            for name in ("vector_store_id", "top_k"):
                if getattr(options, name) is not None:
                    raise stated(f"documents replaces retrieval; leave out chunkcache.{name}")
        return self

    def _notes(self) -> tuple[str, ...]:
        """What was taken and changes nothing, though the caller might have expected it to."""
        return ()

    def _asked(
        self, messages: Sequence[Message], sampling: Sampling, tenant: str, model: ChatModel
    ) -> AnswerRequest:
        """The same wish in the service's terms. The tenant comes from the API key.

        Raises:
            InvalidRequest: it asks for passages from a model that never retrieves.
        """
        said = self.chunkcache.model_dump(exclude={"citations"}) if self.chunkcache else {}
        options = ChunkCacheOptions.model_validate(said)
        model.require_fit(options)
        named = options.vector_store_id
        return AnswerRequest(
            messages=list(messages),
            documents=self.documents,
            tenant=tenant,
            collection=DEFAULT_COLLECTION if named is None else named,
            top_k=options.top_k if model.retrieves else 0,
            sampling=sampling,
            notes=self._notes(),
            options=options,
            layout="chat" if model.retrieves else "plain",
        )


class SampledRequest(AnyRequest):
    """How tokens are drawn, in the words of chat completions and of other engines."""

    top_k: int | None = Field(None, ge=0, lt=2**31, description="sampling cut-off; 0: none")
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=10.0, description="1: none; counts the prompt's tokens, too"
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = Field(
        None, max_length=MAX_BIASES, description="by token id of the served model"
    )
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    ignore_eos: bool | None = Field(None, description="go on to max_tokens")
    stop: _Stops | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    def _sampling(self, max_tokens: int | None) -> Sampling:
        names = set(Sampling.model_fields) - {"logprobs", "max_tokens"}
        wishes = {name: getattr(self, name, None) for name in names}
        wishes["max_tokens"] = max_tokens
        said = {name: value for name, value in wishes.items() if value is not None}
        return Sampling.model_validate(said)


class GenerationRequest(SampledRequest):
    """What chat and text completions say alike."""

    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    n: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description="choices; the prompt is computed once"
    )
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise stated("stream_options is only allowed with stream=true")
        return self
