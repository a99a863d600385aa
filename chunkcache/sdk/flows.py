"""What each method does, once for both clients.

A flow is a generator: it yields the requests to send, is sent the JSON of their answers (or thrown
the error), and returns the method's result. It never waits, so it is neither sync nor async.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InvalidRequest
from ..protocol import Json
from .calls import Call, segment
from .results import answer_of, model_info_of, reading, vector_of
from .texts import hit_of
from .wishes import chat_call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .results import Answer, ModelInfo
    from .texts import Hit
    from .wishes import Question, Wishes

_T = TypeVar("_T")
Flow = Generator[Call, Json, _T]

_EMBED_BATCH = 2048  # the most texts in one request


def ask(question: Question, wishes: Wishes) -> Flow[Answer]:
    """A whole answer."""
    return answer_of((yield chat_call(question, wishes)))


def models() -> Flow[list[ModelInfo]]:
    """What the server runs."""
    reply = yield Call("GET", "/v1/models")
    with reading("the list of models"):
        return [model_info_of(data) for data in reply["data"]]


def embed(texts: Sequence[str]) -> Flow[list[list[float]]]:
    """Vectors, in batches as large as the server takes."""
    if isinstance(texts, str):
        raise InvalidRequest.of("texts", texts, "a list of texts", "put it in brackets")
    vectors: list[list[float]] = []
    for start in range(0, len(texts), _EMBED_BATCH):
        batch = list(texts[start : start + _EMBED_BATCH])
        body: Json = {"input": batch, "encoding_format": "base64"}
        reply = yield Call("POST", "/v1/embeddings", body)
        with reading("the list of embeddings"):
            found = [vector_of(item["embedding"]) for item in reply["data"]]
            if len(found) != len(batch):
                raise ValueError(f"{len(found)} vectors for {len(batch)} texts")
        vectors += found
    return vectors


def search(
    query: str,
    top_k: int,
    vector_store_id: str,
    filters: Mapping[str, Any] | None,
    score_threshold: float | None,
) -> Flow[list[Hit]]:
    """The best passages, best first."""
    store = segment("vector_store_id", vector_store_id)
    body: Json = {"query": query, "max_num_results": top_k}
    if filters is not None:
        body["filters"] = dict(filters)
    if score_threshold is not None:
        body["ranking_options"] = {"score_threshold": score_threshold}
    reply = yield Call("POST", f"/v1/vector_stores/{store}/search", body)
    with reading("the search result"):
        return [hit_of(hit) for hit in reply["data"]]


def health() -> Flow[Json]:
    """The server's own statement; a server that is draining has one too."""
    return (yield Call("GET", "/health", accepts=503))


def version() -> Flow[str]:
    """The server's version."""
    reply = yield Call("GET", "/version")
    with reading("the version"):
        return str(reply["version"])
