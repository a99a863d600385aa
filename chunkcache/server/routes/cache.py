"""`/v1/chunkcache/status` and `/v1/chunkcache/cache/...`: for who runs the server or is a tenant.

The status is the whole service's, as `/metrics` is; records are the tenant's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field

from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ServiceDep, TenantDep
from chunkcache.server.routes.console import warm_up_answer
from chunkcache.server.shapes.body import Body, JsonBody
from chunkcache.server.shapes.generation import DEFAULT_COLLECTION
from chunkcache.version import __version__

if TYPE_CHECKING:
    from chunkcache.console.history import Sample
    from chunkcache.protocol import Json

router = APIRouter(prefix="/v1/chunkcache", route_class=BoundedRoute)


class RecordsQuery(Body):
    """Which part of the list. `after` is the id of the last record already seen."""

    limit: int = Field(100, ge=1, le=1000)
    after: str | None = Field(None, max_length=128)


class PrefetchWish(JsonBody):
    """Which documents of which vector store are to be warm."""

    vector_store_id: str = DEFAULT_COLLECTION
    document_ids: list[Annotated[str, Field(max_length=512)]] = Field(min_length=1, max_length=100)


class ClearWish(JsonBody):
    """What is to be forgotten; said, so that no empty POST does it."""

    what: Literal["all"]


@router.get("/status", response_model=None)
def get_status(service: ServiceDep, _tenant: TenantDep) -> JSONResponse:
    """Health, version, and each tier's records, bytes and hit rate since the service began.

    Figures of tiers are up to 5 seconds old.
    """
    sample = service.console.history.samples("hour")[-1]
    return JSONResponse(
        {
            **service.health(),
            "object": "chunkcache.status",
            "version": __version__,
            "started_at": service.created_at,
            "tiers": _tiers(sample),
            "misses": sample.misses,
        }
    )


@router.get("/quota", response_model=None)
def get_quota(service: ServiceDep, tenant: TenantDep) -> JSONResponse:
    """What the tenant may hold in each tier (null: no limit), and what it holds on disk.

    A quota is the operator's to set, `store.quota_bytes`: no key of a tenant changes it.
    """
    return JSONResponse(
        {
            "object": "chunkcache.quota",
            "limit_bytes": service.settings.store.quotas.get(tenant),
            "disk_bytes": service.holdings.disk_bytes(tenant),
        }
    )


@router.get("/cache/objects", response_model=None)
def list_records(
    query: Annotated[RecordsQuery, Query()], service: ServiceDep, tenant: TenantDep
) -> JSONResponse:
    """The tenant's records on disk, in order of id, with the terms they are kept on."""
    found = service.holdings.records(tenant, after=query.after, limit=query.limit + 1)
    shown = [record.model_dump(mode="json") for record in found[: query.limit]]
    return JSONResponse(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(found) > query.limit,
        }
    )


@router.post("/cache/clear", response_model=None)
def clear_cache(wish: ClearWish, service: ServiceDep, tenant: TenantDep) -> JSONResponse:
    """Forget the tenant's KV on the device, in memory and on disk. Documents stay.

    Remote tiers keep what they have. What is forgotten is computed again when it is asked for.
    """
    return JSONResponse(service.holdings.clear(tenant).model_dump(mode="json"))


@router.post("/cache/prefetches", response_model=None)
def prefetch(wish: PrefetchWish, service: ServiceDep, tenant: TenantDep) -> JSONResponse:
    """Begin to warm documents ahead of the questions; answers at once.

    It is the tenant's warm-up: `/v1/chunkcache/warm_up` says how far it is, pauses and stops it,
    and while another one runs it is refused.
    """
    service.kv_states.of_documents(
        wish.document_ids, tenant=tenant, collection=wish.vector_store_id
    )  # refuses those that are not there
    started = service.console.warm_ups.start(tenant, wish.vector_store_id, wish.document_ids)
    return warm_up_answer(started)


def _tiers(sample: Sample) -> list[Json]:
    names = sorted({*sample.records, *sample.queries})
    return [
        {
            "name": name,
            "records": sample.records.get(name),
            "size_bytes": sample.size_bytes.get(name),
            "queries": sample.queries.get(name, 0.0),
            "hits": sample.hits.get(name, 0.0),
            "hit_rate": _share(sample.hits.get(name, 0.0), sample.queries.get(name, 0.0)),
            "evictions": sample.evictions.get(name, 0.0),
        }
        for name in names
    ]


def _share(hits: float, queries: float) -> float | None:
    return hits / queries if queries else None
