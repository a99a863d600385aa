"""What an answer looks like: the objects of a chat or text completion, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from chunkcache.protocol import AnswerReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import AnswerDelta, AnswerFinished, Choice, ChosenToken, Json
    from chunkcache.server.citations import Citer


def usage_of(finished: AnswerFinished) -> Json:
    """OpenAI's usage object; `cached_tokens` is always there, 0 on a miss."""
    report = finished.report
    return {
        **usage_so_far(report.prompt_tokens, finished.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": report.reused_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def usage_so_far(prompt_tokens: int, completion_tokens: int) -> Json:
    """Usage in the middle of a stream; what came from the cache is only known at its end."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def report_of(finished: AnswerFinished) -> Json:
    """The `chunkcache` object."""
    report = AnswerReport(**dict(finished.report), citations=finished.citations)
    return report.model_dump(mode="json")


class Reply(ABC):
    """Builds the objects of one response, which share an id, a time and a model.

    Args:
        model: the id it was asked for by.
        citer: makes the annotations.
    """

    id_prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, model: str, citer: Citer) -> None:
        self._citer = citer
        self._model = model
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def sources(self, finished: AnswerFinished) -> str:
        """What follows the text if sources are asked for in it."""
        return self._citer.sources(finished.citations)

    def whole(self, finished: AnswerFinished) -> Json:
        """The whole answer as one object."""
        return {
            **self._envelope(self.whole_kind),
            "choices": [
                {**self._choice(choice, finished), "index": index}
                for index, choice in enumerate(finished.choices)
            ],
            "usage": usage_of(finished),
            "chunkcache": report_of(finished),
        }

    def usage_chunk(self, finished: AnswerFinished) -> Json:
        """The extra last chunk of `stream_options.include_usage`."""
        envelope = self._envelope(self.chunk_kind)
        return {**envelope, "choices": [], "usage": usage_of(finished)}

    @abstractmethod
    def opening(self, index: int) -> Json:
        """The first chunk of a choice."""

    @abstractmethod
    def piece(self, delta: AnswerDelta) -> Json:
        """A chunk with a piece of a choice."""

    @abstractmethod
    def closing(self, index: int, choice: Choice, finished: AnswerFinished) -> Json:
        """The chunk that says why a choice ends, and what it could draw on."""

    @abstractmethod
    def _choice(self, choice: Choice, finished: AnswerFinished) -> Json:
        """A choice of the whole answer, its index left out."""

    def _chunk(
        self, index: int, content: Json, finish_reason: str | None = None,
        logprobs: Sequence[ChosenToken] | None = None,
    ) -> Json:  # fmt: skip
        choice = {
            "index": index,
            **content,
            "finish_reason": finish_reason,
            "logprobs": _logprobs(logprobs),
        }
        return {**self._envelope(self.chunk_kind), "choices": [choice]}

    def _envelope(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


class ChatReply(Reply):
    """OpenAI's `chat.completion`."""

    id_prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, model: str, citer: Citer, call_finish_reason: str = "tool_calls") -> None:
        super().__init__(model, citer)
        self._call_finish_reason = call_finish_reason
        self._called: set[int] = set()  # choices of a stream whose call has been named

    def opening(self, index: int) -> Json:
        """Who speaks."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, delta: AnswerDelta) -> Json:
        """A delta of the message; of a call, the first one has its id and its function's name."""
        content: Json = {"content": delta.text}
        if delta.call is not None:
            call: Json = {"index": 0, "function": {"arguments": delta.text}}
            if delta.index not in self._called:
                self._called.add(delta.index)
                call = {"index": 0, **_call(delta.call, delta.text)}
            content = {"tool_calls": [call]}
        return self._chunk(delta.index, {"delta": content}, logprobs=delta.logprobs)

    def closing(self, index: int, choice: Choice, finished: AnswerFinished) -> Json:
        """The annotations, and why the choice ends."""
        found = self._annotations(choice, finished)
        delta = {"annotations": found} if found else {}
        return self._chunk(index, {"delta": delta}, self._finish_reason(choice))

    def _choice(self, choice: Choice, finished: AnswerFinished) -> Json:
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.call is None:
            message["content"] += self.sources(finished)
            message["annotations"] = self._annotations(choice, finished)
        else:
            message["content"] = None
            message["tool_calls"] = [_call(choice.call.name, choice.call.arguments)]
        return {
            "message": message,
            "finish_reason": self._finish_reason(choice),
            "logprobs": _logprobs(choice.logprobs),
        }

    def _finish_reason(self, choice: Choice) -> str:
        is_whole_call = choice.call is not None and choice.finish_reason == "stop"
        return self._call_finish_reason if is_whole_call else choice.finish_reason

    def _annotations(self, choice: Choice, finished: AnswerFinished) -> list[Json]:
        if choice.call is not None:
            return []
        return self._citer.annotations(finished.citations, len(choice.text))


def _call(name: str, arguments: str) -> Json:
    """A call with an id of OpenAI's form."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _logprobs(tokens: Sequence[ChosenToken] | None) -> Json | None:
    """OpenAI's logprobs object; null where they were not asked for."""
    if tokens is None:
        return None
    return {"content": [token.model_dump() for token in tokens], "refusal": None}


class TextReply(Reply):
    """OpenAI's `text_completion`: it has no place for annotations, the report has the passages."""

    id_prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"

    def opening(self, index: int) -> Json:
        """An empty piece."""
        return self._chunk(index, {"text": ""})

    def piece(self, delta: AnswerDelta) -> Json:
        """A piece of the text."""
        return self._chunk(delta.index, {"text": delta.text})

    def closing(self, index: int, choice: Choice, finished: AnswerFinished) -> Json:
        """Why the text ends."""
        return self._chunk(index, {"text": ""}, choice.finish_reason)

    def _choice(self, choice: Choice, finished: AnswerFinished) -> Json:
        return {
            "text": choice.text + self.sources(finished),
            "finish_reason": choice.finish_reason,
            "logprobs": None,
        }
