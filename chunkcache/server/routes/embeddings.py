"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from chunkcache.errors import InvalidRequest
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ModelsDep, ServiceDep, TenantDep
from chunkcache.server.shapes.embeddings import EmbeddingRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

router = APIRouter(route_class=BoundedRoute)


@router.post("/v1/embeddings", response_model=None)
def create_embeddings(
    body: EmbeddingRequest, service: ServiceDep, models: ModelsDep, _tenant: TenantDep
) -> JSONResponse:
    """One vector per text; base64 is little-endian float32, which OpenAI's client asks for."""
    models.require_embedder(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not all(texts):
        raise InvalidRequest.of("input", "", "text of one character or more", "leave it out")
    vectors, num_tokens = service.embed(texts)
    if body.dimensions not in (None, len(vectors[0])):
        raise InvalidRequest.of(
            "dimensions", body.dimensions, f"{len(vectors[0])}, the embedder's own", "leave it out"
        )
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return JSONResponse(
        {"object": "list", "data": data, "model": service.embedder_id, "usage": usage}
    )


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
