"""What the server's answers become: small frozen objects, read from JSON in one place.

Fields that this version does not know are left alone, so that an older client keeps working with a
newer server. Fields that it needs and misses are an `InvalidResponse`.
"""

from __future__ import annotations

import base64
import sys
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel

from ..errors import InvalidResponse
from ..forms import FunctionCall
from ..protocol import AnswerDelta, AnswerReport, AnswerStarted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..protocol import Citation, Json

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_tokens` are part of `prompt_tokens`, not beside them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer, what it was drawn from, and how exact it is."""

    id: str
    model: str
    text: str
    finish_reason: Literal["stop", "length", "tool_calls"]
    citations: tuple[Citation, ...]  # the passages in the prompt, in prompt order
    links: tuple[str, ...]  # where a reader finds each of them, in the same order
    report: AnswerReport
    usage: Usage
    calls: tuple[FunctionCall, ...] = ()  # the text is empty where there are any

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the server runs, by one of its ids."""

    id: str
    kind: Literal["chat", "embedding"]
    created_at: int  # seconds since the epoch
    retrieves: bool = False  # whether a chat with it begins with a search


StreamEvent = AnswerStarted | AnswerDelta | Answer
"""A stream: once the passages, then pieces of text, at last the whole answer."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever goes wrong when JSON is not as expected into `InvalidResponse`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InvalidResponse(
            f"{what} is not what a chunkcache server sends ({type(error).__name__}: {error}). "
            "Hint: check the base URL and the versions of both sides."
        ) from error


def model_of(model: type[_Model], data: object) -> _Model:
    """A wire model, leaving out fields that it does not know. To be used within `reading`."""
    return model.model_validate(data, extra="ignore")


def answer_of(completion: Json) -> Answer:
    """An answer from a `chat.completion` object. Raises `InvalidResponse`."""
    with reading("the answer"):
        (choice,) = completion["choices"]
        message, usage = choice["message"], completion["usage"]
        calls = [(call["id"], call["function"]) for call in message.get("tool_calls", [])]
        report = model_of(AnswerReport, completion["chunkcache"])
        return Answer(
            id=completion["id"],
            model=completion["model"],
            text=message["content"] or "",
            finish_reason=choice["finish_reason"],
            citations=tuple(report.citations),
            links=tuple(note["url_citation"]["url"] for note in message.get("annotations", [])),
            report=report,
            usage=Usage(
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            ),
            calls=tuple(
                FunctionCall(id=call_id, name=called["name"], arguments=called["arguments"])
                for call_id, called in calls
            ),
        )


def model_info_of(data: Json) -> ModelInfo:
    """A served model from a `model` object. To be used within `reading`."""
    about = data["chunkcache"]
    return ModelInfo(data["id"], about["kind"], data["created"], about.get("retrieves", False))


def vector_of(packed: str) -> list[float]:
    """An embedding from base64 of little-endian float32. To be used within `reading`."""
    numbers = array("f")
    numbers.frombytes(base64.b64decode(packed, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
