"""`/health`, `/ready`, `/version`, `/metrics`: for operators, with no key and no tenant data."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from chunkcache.server.deps import ServiceDep
from chunkcache.version import __version__

router = APIRouter()


@router.get("/health", response_model=None, responses={503: {"description": "It is shutting down"}})
async def health(service: ServiceDep) -> JSONResponse:
    """The service's own statement: 200 if its status is `ok`, else 503."""
    state = service.health()
    return JSONResponse(state, status_code=200 if state.get("status") == "ok" else 503)


@router.get("/ready", response_model=None, responses={503: {"description": "Not, or no more"}})
async def ready(service: ServiceDep) -> JSONResponse:
    """The same statement: 200 once indexes have been opened after the start, until it shuts down.

    Before that it serves, but a search waits for its index. That indexes are `behind` what was
    ingested since then takes nothing back.
    """
    state = service.health()
    is_ready = state.get("status") == "ok" and state.get("indexes") != "opening"
    return JSONResponse(state, status_code=200 if is_ready else 503)


@router.get("/version", response_model=None)
async def version() -> JSONResponse:
    """The version of chunkcache."""
    return JSONResponse({"version": __version__})


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(service: ServiceDep) -> Response:
    """Prometheus text format. Not on the event loop: gauges of the store read its disk tier."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
def description(request: Request) -> JSONResponse:
    """This server's own description. Not on the event loop: building it takes half a second."""
    return JSONResponse(request.app.openapi())
