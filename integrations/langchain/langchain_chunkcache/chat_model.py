"""The server's decoder as a chat model."""

from __future__ import annotations

from contextlib import aclosing, closing
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from chunkcache_client.errors import UnsupportedField
from chunkcache_client.protocol import AnswerDelta
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field

from chunkcache_client import Answer
from langchain_chunkcache.connection import Connection
from langchain_chunkcache.documents import given_document
from langchain_chunkcache.messages import (
    PROVIDER,
    chunk_of,
    last_chunk_of,
    message_of,
    turns_of,
)
from langchain_chunkcache.schemas import closed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )
    from langchain_core.language_models import LangSmithParams, LanguageModelInput
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.tools import BaseTool

_WORDS = ("auto", "none", "required")
_WISHES = (
    "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "max_tokens", "seed", "stop", "vector_store_id", "top_k", "mode", "policy", "budget",
    "exactness", "order", "match_messages",
)  # fmt: skip


class ChatChunkCache(Connection, BaseChatModel):
    """Answers from the documents of a vector store, or from the conversation alone.

    A model id that retrieves searches `vector_store_id` for the last user turn; `top_k=0`, or the
    id that ends in `:plain`, does not. Passages that stand in the messages (of a retriever's chain)
    are recognised and read from the cache all the same. `documents=[...]` (LangChain's documents,
    texts, or the server's objects) may be given per call and replace retrieval.

    `response_metadata` of an answer has `citations` (the passages, with `link`) and `chunkcache`
    (`rung`: exact, repaired or full; what each span got; what it cost).

    A tool is called where `tool_choice` demands it ("any", a name); where a model may choose, this
    server's does not call.
    """

    model: str = Field("", description="empty: the server's first, which retrieves")
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: list[str] | None = Field(None, alias="stop_sequences")
    vector_store_id: str | None = None
    top_k: int | None = Field(None, description="passages retrieved; not the sampling top_k")
    mode: Literal["auto", "exact", "full"] | None = None
    policy: str | None = None
    budget: float | None = None
    exactness: dict[str, float] | None = None
    order: str | None = None
    match_messages: bool | None = None

    model_config = ConfigDict(populate_by_name=True)

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        said = {name: getattr(self, name) for name in ("model", *_WISHES)}
        return {name: value for name, value in said.items() if value not in (None, "")}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self.client.ask(turns_of(messages), **self._wishes(stop, kwargs))
        return _result(answer)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with self.async_client() as client:
            answer = await client.ask(turns_of(messages), **self._wishes(stop, kwargs))
        return _result(answer)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        pieces = _Pieces()
        events = self.client.stream(turns_of(messages), **self._wishes(stop, kwargs))
        with closing(events):
            for event in events:
                if (chunk := pieces.of(event)) is None:
                    continue
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        pieces = _Pieces()
        async with self.async_client() as client:
            events = client.stream(turns_of(messages), **self._wishes(stop, kwargs))
            async with aclosing(events):
                async for event in events:
                    if (chunk := pieces.of(event)) is None:
                        continue
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools; one is called where `tool_choice` is "any", true or a name."""
        choice: Any = tool_choice or None
        if tool_choice is True or tool_choice == "any":
            choice = "required"
        elif isinstance(tool_choice, str) and tool_choice and tool_choice not in _WORDS:
            choice = {"type": "function", "function": {"name": tool_choice}}
        said = {"tool_choice": choice, "parallel_tool_calls": parallel_tool_calls}
        known = {name: value for name, value in said.items() if value is not None}
        return self.bind(tools=[_tool(tool) for tool in tools], **known, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model held to a schema while it decodes; `strict` changes nothing, it always is.

        `json_mode` gives any JSON object, which need not fit the schema.
        """
        if kwargs:
            name = next(iter(kwargs))
            raise UnsupportedField(f"with_structured_output: there is no {name!r}.", param=name)
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw)
        form: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            wanted = convert_to_json_schema(schema)
            name = str(wanted.get("title") or "answer")
            form = {"type": "json_schema", "json_schema": {"name": name, "schema": closed(wanted)}}
        elif method != "json_mode":
            raise UnsupportedField(
                f"method: got {method!r}, must be json_schema, function_calling or json_mode.",
                param="method",
            )
        told = {"kwargs": {"method": method}, "schema": schema}
        model = self.bind(response_format=form, ls_structured_output_format=told)
        parser: Any = JsonOutputParser()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
        return _with_raw(model, parser) if include_raw else model | parser

    def _wishes(self, stop: list[str] | None, kwargs: dict[str, Any]) -> Any:
        """What is said beside the conversation; a wish that there is not is a `TypeError`."""
        said = {**self._identifying_params, **kwargs}
        if stop is not None:
            said["stop"] = stop
        if not said.get("stop"):
            said.pop("stop", None)
        if "documents" in said:
            said["documents"] = [given_document(document) for document in said["documents"]]
        return said


def _tool(given: dict[str, Any] | type | Callable[..., Any] | BaseTool) -> dict[str, Any]:
    """OpenAI's tool object; its function takes what it names and nothing else."""
    made = convert_to_openai_tool(given)
    function = dict(made["function"])
    if "parameters" in function:
        function["parameters"] = closed(function["parameters"])
    return {**made, "function": function}


class _Pieces:
    """Turns the events of one stream into chunks."""

    def __init__(self) -> None:
        self._calling = False

    def of(self, event: Any) -> ChatGenerationChunk | None:
        """The chunk of an event; None: it has nothing to show."""
        if isinstance(event, AnswerDelta):
            chunk = chunk_of(event, opens_call=not self._calling)
            self._calling = self._calling or event.call is not None
            return ChatGenerationChunk(message=chunk)
        if isinstance(event, Answer):
            return ChatGenerationChunk(
                message=last_chunk_of(event),
                generation_info={"finish_reason": event.finish_reason},
            )
        return None


def _result(answer: Answer) -> ChatResult:
    made = ChatGeneration(
        message=message_of(answer), generation_info={"finish_reason": answer.finish_reason}
    )
    return ChatResult(generations=[made], llm_output={"model_name": answer.model})


def _with_raw(model: Any, parser: Any) -> Runnable[LanguageModelInput, Any]:
    """The parsed answer beside the raw one, or beside what is wrong with it."""
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
