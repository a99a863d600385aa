"""`/v1/chunkcache/status` and `/v1/chunkcache/cache/...`: for who runs the server or is a tenant.

The status is the whole service's, as `/metrics` is; records are the tenant's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field, model_validator

from chunkcache.console.warming import WarmWish
from chunkcache.errors import Forbidden
from chunkcache.keep import DEFAULT_LIMIT, Keep, Limit
from chunkcache.protocol import GivenDocument
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import KeysDep, ServiceDep, TenantDep
from chunkcache.server.routes.console import warm_up_answer
from chunkcache.server.shapes.body import JsonBody, Parameters, stated
from chunkcache.server.shapes.generation import DEFAULT_COLLECTION
from chunkcache.version import __version__

if TYPE_CHECKING:
    from chunkcache.console.history import Sample
    from chunkcache.protocol import Json
    from chunkcache.server.auth import ApiKeys
    from chunkcache.server.backend import Service

router = APIRouter(prefix="/v1/chunkcache", route_class=BoundedRoute)


class RecordsQuery(Parameters):
    """Which part of the list. `after` is the id of the last record already seen."""

    limit: int = Field(100, ge=1, le=1000)
    after: str | None = Field(None, max_length=128)


def _as_document(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


_Text = Annotated[GivenDocument, BeforeValidator(_as_document)]


class ChunksWish(JsonBody):
    """Whose chunks: of documents of a vector store, or of texts as requests bring them.

    The vector store must be there beside texts too, though nothing of it is meant then.
    """

    vector_store_id: str = DEFAULT_COLLECTION
    document_ids: list[Annotated[str, Field(max_length=512)]] | None = Field(
        None, min_length=1, max_length=100
    )
    texts: list[_Text] | None = Field(
        None, min_length=1, max_length=1024, description="each a text, or as one of `documents`"
    )
    retention: Literal["normal", "warmed", "pinned"] | None = Field(
        None,
        description="warmed: documents of requests do not push it out; pinned: it leaves no tier "
        "below the device to make room, as far as half of it goes",
    )
    priority: int | None = Field(
        None, ge=-16, le=16, description="a hit is worth 2^priority of another's"
    )
    expires_after_s: float | None = Field(
        None, gt=0.0, le=315_360_000.0,
        description="soft: from then on it leaves before all else, and is served until it has",
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.document_ids is None) == (self.texts is None):
            raise stated("say which chunks are meant: document_ids or texts, one of the two")
        for number, text in enumerate(self.texts or ()):
            if not text.text.strip():
                raise stated(f"texts.{number} is blank, and there is nothing in it to be kept")
        return self

    def keep(self, retention: Literal["normal", "warmed"]) -> Keep:
        """The terms, with this retention where none is said."""
        return Keep(
            retention=self.retention or retention, priority=self.priority or 0,
            expires_after_s=self.expires_after_s,
        )  # fmt: skip

    def says_terms(self) -> bool:
        """Whether any of the terms is said."""
        return any(
            term is not None for term in (self.retention, self.priority, self.expires_after_s)
        )


class QuotaWish(JsonBody):
    """How much a tenant may hold."""

    tenant: str | None = Field(None, min_length=1, max_length=256, description="null: the caller's")
    limit_bytes: int | None = Field(
        ge=0, lt=2**63, description="of each tier; null: no limit, whatever the settings say"
    )


class QuotaQuery(Parameters):
    """Whose quota."""

    tenant: str | None = Field(None, min_length=1, max_length=256, description="null: the caller's")


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
    """What the tenant may hold in each tier (null: no limit), and what it holds on disk."""
    return _quota_answer(service, tenant, disk_bytes=service.holdings.disk_bytes(tenant))


@router.put("/quota", response_model=None)
def put_quota(
    wish: QuotaWish, service: ServiceDep, tenant: TenantDep, keys: KeysDep
) -> JSONResponse:
    """Limit what a tenant may hold in each tier, now and after a restart.

    Where there are keys, only those of tenants in `server.operators` may: no tenant raises its own.
    What it holds above the limit leaves when it brings more; `disk_bytes` is null: that is not
    looked up here. A tenant that has neither a key nor a limit is refused.
    """
    return _set_quota(service, keys, tenant, wish.tenant or tenant, wish.limit_bytes)


@router.delete("/quota", response_model=None)
def delete_quota(
    query: Annotated[QuotaQuery, Query()], service: ServiceDep, tenant: TenantDep, keys: KeysDep
) -> JSONResponse:
    """Take back what was set for a tenant: the settings say again what it may hold.

    For whom, and for which tenants, as setting it.
    """
    return _set_quota(service, keys, tenant, query.tenant or tenant, DEFAULT_LIMIT)


def _set_quota(
    service: Service, keys: ApiKeys, caller: str, tenant: str, limit: Limit
) -> JSONResponse:
    server = service.settings.server
    if server.api_keys_file is not None and caller not in server.operators:
        raise Forbidden(
            f"The quota of {tenant} is not for the keys of {caller} to set. Hint: "
            "server.operators names the tenants whose keys may."
        )
    if service.quotas.limit_bytes(tenant) is None:  # else it may be lifted
        keys.check_tenant(tenant, field="tenant")
    service.set_quota(tenant, limit)
    return _quota_answer(service, tenant, disk_bytes=None)


def _quota_answer(service: Service, tenant: str, *, disk_bytes: int | None) -> JSONResponse:
    return JSONResponse(
        {
            "object": "chunkcache.quota",
            "tenant": tenant,
            "limit_bytes": service.quotas.limit_bytes(tenant),
            "disk_bytes": disk_bytes,
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
def prefetch(wish: ChunksWish, service: ServiceDep, tenant: TenantDep) -> JSONResponse:
    """Begin to warm documents, or texts, ahead of the questions; answers at once.

    It is the tenant's warm-up: `/v1/chunkcache/warm_up` says how far it is, pauses and stops it,
    and while another one runs it is refused. What is warm already is put on the terms that are
    said; without any it is `warmed`.
    """
    service.keeping.check_documents(tenant, wish.vector_store_id, wish.document_ids or ())
    keep = wish.keep("warmed") if wish.says_terms() else None
    task = WarmWish(wish.vector_store_id, wish.document_ids, wish.texts, keep)
    return warm_up_answer(service.console.warm_ups.start(tenant, task))


@router.post("/cache/terms", response_model=None)
def set_terms(wish: ChunksWish, service: ServiceDep, tenant: TenantDep) -> JSONResponse:
    """Pin, prefer, let expire, or let be as usual again what is stored of documents or texts.

    What is left out is as usual: retention `normal`, priority 0, no end. Nothing is computed, and
    tiers on other machines keep no terms.
    """
    kept = service.keeping.keep(
        wish.keep("normal"), tenant=tenant, collection=wish.vector_store_id,
        document_ids=wish.document_ids, texts=wish.texts,
    )  # fmt: skip
    return JSONResponse(kept.model_dump(mode="json"))


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
