"""`/v1/models`: the decoder by all its ids, first those that retrieve, then the embedder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from chunkcache.errors import NotFound
from chunkcache.server.deps import ModelsDep, ServiceDep

if TYPE_CHECKING:
    from chunkcache.protocol import Json
    from chunkcache.server.backend import Service

router = APIRouter()


@router.get("/v1/models", response_model=None)
async def list_models(service: ServiceDep, models: ModelsDep) -> JSONResponse:
    """The ids of the decoder, plain ones too, and that of the embedder."""
    listed = [_model(service, name, kind="chat", retrieves=name in models.decoder)
              for name in models.chat_ids]  # fmt: skip
    listed.append(_model(service, models.embedder, kind="embedding"))
    return JSONResponse({"object": "list", "data": listed})


@router.get("/v1/models/{model_id:path}", response_model=None)
async def get_model(model_id: str, service: ServiceDep, models: ModelsDep) -> JSONResponse:
    """One model; ids may hold slashes."""
    if model_id == models.embedder:
        return JSONResponse(_model(service, model_id, kind="embedding"))
    try:
        chosen = models.chat(model_id)
    except NotFound:
        raise models.unknown(model_id) from None
    return JSONResponse(_model(service, model_id, kind="chat", retrieves=chosen.retrieves))


def _model(service: Service, model_id: str, **properties: str | bool) -> Json:
    """OpenAI's `model` object; `chunkcache` says what it is for."""
    return {
        "id": model_id,
        "object": "model",
        "created": int(service.created_at),
        "owned_by": "chunkcache",
        "chunkcache": properties,
    }
