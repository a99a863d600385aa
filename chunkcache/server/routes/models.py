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
    return JSONResponse({"object": "list", "data": _models(service)})


@router.get("/v1/models/{model_id:path}", response_model=None)
async def get_model(model_id: str, service: ServiceDep) -> JSONResponse:
    """One model; ids may hold slashes."""
    for model in _models(service):
        if model["id"] == model_id:
            return JSONResponse(model)
    raise unknown_model(model_id, service.model_id)


def _models(service: Service) -> list[Json]:
    """OpenAI's `model` objects; `chunkcache.kind` says what each is for."""
    kinds = {service.model_id: "chat", service.embedder_id: "embedding"}
    return [
        {
            "id": model_id,
            "object": "model",
            "created": int(service.created_at),
            "owned_by": "chunkcache",
            "chunkcache": {"kind": kind},
        }
        for model_id, kind in kinds.items()
    ]
