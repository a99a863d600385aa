"""From what a caller writes in one line to the service's own terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from chunkcache.errors import InvalidRequest
from chunkcache.protocol import (
    AnswerRequest,
    ChunkCacheOptions,
    GivenDocument,
    Message,
    Sampling,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def answer_request(question: str | AnswerRequest, wishes: Mapping[str, Any]) -> AnswerRequest:
    """The request that `ChunkCache.ask(question, **wishes)` stands for.

    Raises:
        InvalidRequest: a wish is unknown or out of range, or stands beside a whole request.
    """
    if isinstance(question, AnswerRequest):
        if wishes:
            raise InvalidRequest.of(
                next(iter(wishes)), "…", "part of the AnswerRequest", "set it there"
            )
        return question
    left = dict(wishes)
    options = {n: left.pop(n) for n in ChunkCacheOptions.model_fields if n in left}
    documents = left.pop("documents", None)
    top_k = options.pop("top_k", None)  # the retrieval depth here, as it is in AnswerRequest
    sampling = {n: left.pop(n) for n in Sampling.model_fields if n in left}
    try:
        if documents is not None:
            documents = [GivenDocument(text=d) if isinstance(d, str) else d for d in documents]
        return AnswerRequest(
            messages=[Message(role="user", content=question)],
            documents=documents,
            top_k=top_k,
            sampling=Sampling(**sampling),
            options=ChunkCacheOptions(**options),
            **left,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "question"
        raise InvalidRequest(
            f"{name}: got {first.get('input')!r}. {first['msg'].removeprefix('Value error, ')}.",
            param=name,
        ) from error
