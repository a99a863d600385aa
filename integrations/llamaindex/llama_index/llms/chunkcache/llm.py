"""The server's decoder as an LLM."""

from __future__ import annotations

import os
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from chunkcache_client.protocol import AnswerDelta
from llama_index.core.base.llms.generic_utils import (
    achat_to_completion_decorator,
    astream_chat_to_completion_decorator,
    chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.llms.chunkcache.messages import document_of, response_of, turns_of

from chunkcache_client import DEFAULT_URL, Answer, AsyncClient, Client

if TYPE_CHECKING:
    from collections.abc import Sequence

API_KEY = "CHUNKCACHE_API_KEY"


class ChunkCacheLLM(LLM):
    """Answers from nodes given to a call, from what the server finds, or from the prompt alone.

    `nodes=[...]` of a call go to the server as documents: their KV is computed once and read from
    then on, and citations name them by their node ids. Without nodes a model id that retrieves
    searches for the last user turn; `top_k=0`, or the id that ends in `:plain`, does not. Passages
    that a query engine writes into its prompt are recognised and read from the cache all the same.
    """

    base_url: str = Field(default=DEFAULT_URL, description="the server's address")
    api_key: str | None = Field(
        default_factory=lambda: os.environ.get(API_KEY) or None, exclude=True, repr=False,
        description="for servers that ask for one",
    )  # fmt: skip
    model: str = Field(default="", description="empty: the server's first, which retrieves")
    temperature: float | None = Field(default=None, description="None: 0, greedy")
    max_tokens: int | None = Field(default=None, description="None: as the server says")
    context_window: int = Field(
        default=DEFAULT_CONTEXT_WINDOW, description="of the served model, in tokens"
    )
    timeout: float | None = Field(default=600.0, description="seconds")
    max_retries: int = Field(default=2)
    additional_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="further wishes of chunkcache_client.Client.ask: budget, vector_store_id, ...",
    )

    @classmethod
    def class_name(cls) -> str:
        """As LlamaIndex saves it."""
        return "ChunkCacheLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex packs prompts by."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or DEFAULT_NUM_OUTPUTS,
            is_chat_model=True,
            model_name=self.model or "chunkcache",
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """An answer; what it was drawn from and how exact it is stand in `raw`."""
        with Client(**self._connection()) as client:
            return response_of(client.ask(turns_of(messages), **self._wishes(kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See `chat`."""
        async with AsyncClient(**self._connection()) as client:
            return response_of(await client.ask(turns_of(messages), **self._wishes(kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The same as it is made; the last response has the whole of `raw`."""
        turns, wishes = turns_of(messages), self._wishes(kwargs)

        def responses() -> ChatResponseGen:
            text = ""
            with (
                Client(**self._connection()) as client,
                closing(client.stream(turns, **wishes)) as events,
            ):
                for event in events:
                    if isinstance(event, AnswerDelta):
                        text += event.text
                        yield _so_far(text, event.text)
                    elif isinstance(event, Answer):
                        yield response_of(event, delta="")

        return responses()

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """See `stream_chat`."""
        turns, wishes = turns_of(messages), self._wishes(kwargs)

        async def responses() -> ChatResponseAsyncGen:
            text = ""
            async with (
                AsyncClient(**self._connection()) as client,
                aclosing(client.stream(turns, **wishes)) as events,
            ):
                async for event in events:
                    if isinstance(event, AnswerDelta):
                        text += event.text
                        yield _so_far(text, event.text)
                    elif isinstance(event, Answer):
                        yield response_of(event, delta="")

        return responses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The prompt as a lone user turn."""
        return chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """See `complete`."""
        return await achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """See `complete` and `stream_chat`."""
        return stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """See `complete` and `stream_chat`."""
        return await astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)

    def _connection(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "api_key": self.api_key,
            "timeout_s": self.timeout,
            "retries": self.max_retries,
        }

    def _wishes(self, kwargs: dict[str, Any]) -> Any:
        """What is said beside the conversation; a wish that there is not is a `TypeError`."""
        own = {
            "model": self.model or None,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        wishes = {**own, **self.additional_kwargs, **kwargs}
        nodes = wishes.pop("nodes", None)
        if nodes is not None:
            wishes["documents"] = [document_of(node) for node in nodes]
        return wishes


def _so_far(text: str, delta: str) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta)
