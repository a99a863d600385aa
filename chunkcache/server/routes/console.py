"""`/v1/chunkcache/...`: what the page at `/` shows and does beyond OpenAI's routes.

Every answer is bounded. Requests, chunks and warm-ups are the tenant's own; figures are the whole
cache's, as those of `/metrics` are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field

from chunkcache.console.history import INTERVAL_S
from chunkcache.console.sizing import read_sizing
from chunkcache.console.warming import WarmWish
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ServiceDep, TenantDep
from chunkcache.server.paging import PageQuery, page
from chunkcache.server.shapes.body import JsonBody, Parameters
from chunkcache.server.shapes.generation import DEFAULT_COLLECTION

if TYPE_CHECKING:
    from chunkcache.config import Settings
    from chunkcache.console.warming import WarmState

router = APIRouter(prefix="/v1/chunkcache", route_class=BoundedRoute)
_DocumentId = Annotated[str, Field(max_length=512)]


class FiguresQuery(Parameters):
    """Which time to look back over."""

    span: Literal["hour", "days"] = "hour"


class StatesQuery(Parameters):
    """Which documents of which vector store."""

    vector_store_id: str = DEFAULT_COLLECTION
    document_id: list[_DocumentId] = Field(min_length=1, max_length=100)


class ChunksQuery(Parameters):
    """Which part of a document of which vector store."""

    vector_store_id: str = DEFAULT_COLLECTION
    offset: int = Field(0, ge=0, lt=2**31)
    limit: int = Field(20, ge=1, le=50)


class WarmUpWish(JsonBody):
    """What to do with the tenant's warm-up. Only `start` looks at the vector store."""

    action: Literal["start", "pause", "resume", "stop"]
    vector_store_id: str = DEFAULT_COLLECTION


@router.get("/requests", response_model=None)
def list_requests(
    query: Annotated[PageQuery, Query()], service: ServiceDep, tenant: TenantDep
) -> JSONResponse:
    """The tenant's last 200 requests, with what each passage got and why one was a miss."""
    records = service.console.journal.of(tenant)
    return JSONResponse(page([record.model_dump(mode="json") for record in records], query))


@router.get("/figures", response_model=None)
def get_figures(
    query: Annotated[FiguresQuery, Query()], service: ServiceDep, _tenant: TenantDep
) -> JSONResponse:
    """Look-ups, hits, misses, bytes and evictions over time, and the sizing curve if there is one.

    At most 864 samples: of the last hour of use every 5 seconds, or of three days every 5 minutes.
    The sizing curve is what the hit-rate tool left in the home folder, or null.
    """
    samples = service.console.history.samples(query.span)
    sizing = read_sizing(service.settings.home)
    return JSONResponse(
        {
            "object": "chunkcache.figures",
            "span": query.span,
            "interval_s": INTERVAL_S[query.span],
            "started_at": service.created_at,
            "capacity_bytes": _capacities(service.settings),
            "samples": [sample.model_dump(mode="json") for sample in samples],
            "sizing": sizing.model_dump(mode="json") if sizing else None,
        }
    )


@router.get("/kv", response_model=None)
def get_document_states(
    query: Annotated[StatesQuery, Query()], service: ServiceDep, tenant: TenantDep
) -> JSONResponse:
    """How many chunks of each document have their KV in which tier; at most 100 documents."""
    states = service.kv_states.of_documents(
        query.document_id, tenant=tenant, collection=query.vector_store_id
    )
    return JSONResponse({"object": "list", "data": [s.model_dump(mode="json") for s in states]})


@router.get("/documents/{document_id}/chunks", response_model=None)
def list_chunks(
    document_id: str,
    query: Annotated[ChunksQuery, Query()],
    service: ServiceDep,
    tenant: TenantDep,
) -> JSONResponse:
    """The chunks of a document in order, each with the tier that holds its KV."""
    info, chunks = service.kv_states.of_chunks(
        document_id, tenant=tenant, collection=query.vector_store_id,
        offset=query.offset, limit=query.limit,
    )  # fmt: skip
    return JSONResponse(
        {
            "object": "list",
            "document": info.model_dump(mode="json"),
            "data": [chunk.model_dump(mode="json") for chunk in chunks],
            "has_more": query.offset + len(chunks) < info.num_chunks,
        }
    )


@router.get("/warm_up", response_model=None)
def get_warm_up(service: ServiceDep, tenant: TenantDep) -> JSONResponse:
    """The tenant's warm-up: its state, how far it is, how long it will take."""
    return warm_up_answer(service.console.warm_ups.state(tenant))


@router.post("/warm_up", response_model=None)
def change_warm_up(wish: WarmUpWish, service: ServiceDep, tenant: TenantDep) -> JSONResponse:
    """Start, pause, resume or stop the tenant's warm-up; answers at once."""
    warm_ups = service.console.warm_ups
    if wish.action == "start":
        service.collection(wish.vector_store_id, tenant=tenant)
        return warm_up_answer(warm_ups.start(tenant, WarmWish(wish.vector_store_id)))
    verbs = {"pause": warm_ups.pause, "resume": warm_ups.resume, "stop": warm_ups.stop}
    return warm_up_answer(verbs[wish.action](tenant))


def warm_up_answer(state: WarmState) -> JSONResponse:
    """A warm-up's state as its routes answer it."""
    return JSONResponse({"object": "chunkcache.warm_up", **state.model_dump(mode="json")})


def _capacities(settings: Settings) -> dict[str, int]:
    """What the settings give the tiers below the device."""
    store = settings.store
    return {"host": store.host_capacity_bytes, "disk": store.disk_capacity_bytes}
