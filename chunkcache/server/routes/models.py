"""`/v1/models`: the decoder first, then the embedder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from chunkcache.server.deps import ServiceDep, unknown_model

if TYPE_CHECKING:
    from chunkcache.protocol import Json
    from chunkcache.server.backend import Service

router = APIRouter()


@router.get("/v1/models", response_model=None)
async def list_models(service: ServiceDep) -> JSONResponse:
    """The two models served."""
    ids = (service.model_id, service.embedder_id)
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in ids]})


@router.get("/v1/models/{model_id:path}", response_model=None)
async def get_model(model_id: str, service: ServiceDep) -> JSONResponse:
    """One model; ids may hold slashes."""
    if model_id not in (service.model_id, service.embedder_id):
        raise unknown_model(model_id, service.model_id)
    return JSONResponse(_model(service, model_id))


def _model(service: Service, model_id: str) -> Json:
    created = int(service.created_at)
    return {"id": model_id, "object": "model", "created": created, "owned_by": "chunkcache"}
