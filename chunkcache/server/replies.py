"""What an answer looks like: the objects of a chat or text completion, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from chunkcache.protocol import AnswerReport

if TYPE_CHECKING:
    from chunkcache.protocol import AnswerFinished, Json
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
            "choices": [self._choice(finished)],
            "usage": usage_of(finished),
            "chunkcache": report_of(finished),
        }

    def usage_chunk(self, finished: AnswerFinished) -> Json:
        """The extra last chunk of `stream_options.include_usage`."""
        envelope = self._envelope(self.chunk_kind)
        return {**envelope, "choices": [], "usage": usage_of(finished)}

    @abstractmethod
    def opening(self) -> Json:
        """The first chunk of a stream."""

    @abstractmethod
    def piece(self, text: str) -> Json:
        """A chunk with a piece of the answer."""

    @abstractmethod
    def closing(self, finished: AnswerFinished) -> Json:
        """The chunk that says why the answer ends, and what it could draw on."""

    @abstractmethod
    def _choice(self, finished: AnswerFinished) -> Json:
        """The only choice of the whole answer."""

    def _chunk(self, finish_reason: str | None, content: Json) -> Json:
        choice = {"index": 0, **content, "finish_reason": finish_reason, "logprobs": None}
        return {**self._envelope(self.chunk_kind), "choices": [choice]}

    def _envelope(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


class ChatReply(Reply):
    """OpenAI's `chat.completion`."""

    id_prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self) -> Json:
        """Who speaks."""
        return self._chunk(None, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, text: str) -> Json:
        """A delta of the message."""
        return self._chunk(None, {"delta": {"content": text}})

    def closing(self, finished: AnswerFinished) -> Json:
        """The annotations, and why the answer ends."""
        found = self._annotations(finished)
        delta = {"annotations": found} if found else {}
        return self._chunk(finished.finish_reason, {"delta": delta})

    def _choice(self, finished: AnswerFinished) -> Json:
        message = {
            "role": "assistant",
            "content": finished.text + self.sources(finished),
            "refusal": None,
            "annotations": self._annotations(finished),
        }
        return {
            "index": 0,
            "message": message,
            "finish_reason": finished.finish_reason,
            "logprobs": None,
        }

    def _annotations(self, finished: AnswerFinished) -> list[Json]:
        return self._citer.annotations(finished.citations, len(finished.text))


class TextReply(Reply):
    """OpenAI's `text_completion`: it has no place for annotations, the report has the passages."""

    id_prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"

    def opening(self) -> Json:
        """An empty piece."""
        return self.piece("")

    def piece(self, text: str) -> Json:
        """A piece of the text."""
        return self._chunk(None, {"text": text})

    def closing(self, finished: AnswerFinished) -> Json:
        """Why the text ends."""
        return self._chunk(finished.finish_reason, {"text": ""})

    def _choice(self, finished: AnswerFinished) -> Json:
        return {
            "index": 0,
            "text": finished.text + self.sources(finished),
            "finish_reason": finished.finish_reason,
            "logprobs": None,
        }
