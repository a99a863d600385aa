"""`/v1/vector_stores`: collections of documents, under OpenAI's name for them.

Ingestion happens while the attaching request waits, so a file's status is final at once. A vector
store that has expired is not searched; its documents stay until it is deleted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.server.attachments import attach_file, attachments_of
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ServiceDep, ShelfDep, TenantDep
from chunkcache.server.paging import PageQuery, page
from chunkcache.server.routes.vector_store_files import check_chunking
from chunkcache.server.shapes.vector_stores import (
    CreateVectorStore,
    ExpiresAfter,
    SearchQuery,
    UpdateVectorStore,
)

if TYPE_CHECKING:
    from chunkcache.protocol import CollectionInfo, Json, Passage
    from chunkcache.server.backend import Service
    from chunkcache.server.files import Attachment, FileShelf

router = APIRouter(prefix="/v1/vector_stores", route_class=BoundedRoute)


@router.post("", response_model=None)
def create_vector_store(
    body: CreateVectorStore, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """A new vector store, with the given files attached; unknown files are an error first."""
    check_chunking(service, body.chunking_strategy)
    for file_id in body.file_ids:
        shelf.get(tenant, file_id)
    store = service.create_collection(
        body.name or "", tenant=tenant, metadata=body.metadata,
        expires_after_days=_days(body.expires_after),
    )  # fmt: skip
    for file_id in body.file_ids:
        attach_file(service, shelf, tenant, store.id, file_id, {})
    return JSONResponse(_store_object(service, shelf, tenant, store))


@router.get("", response_model=None)
def list_vector_stores(
    query: Annotated[PageQuery, Query()], service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """The tenant's vector stores."""
    stores = sorted(service.collections(tenant=tenant), key=lambda s: (s.created_at, s.id))
    return JSONResponse(page([_store_object(service, shelf, tenant, s) for s in stores], query))


@router.get("/{store_id}", response_model=None)
def get_vector_store(
    store_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """One vector store."""
    store = service.collection(store_id, tenant=tenant)
    return JSONResponse(_store_object(service, shelf, tenant, store))


@router.post("/{store_id}", response_model=None)
def update_vector_store(
    store_id: str,
    body: UpdateVectorStore,
    service: ServiceDep,
    shelf: ShelfDep,
    tenant: TenantDep,
) -> JSONResponse:
    """Change name, metadata or expiry. Its time begins anew, so an expired one can be used again.

    Raises:
        InvalidRequest: `default`, which every tenant has, was to expire.
    """
    before, given = service.collection(store_id, tenant=tenant), body.model_fields_set
    days = _days(body.expires_after) if "expires_after" in given else before.expires_after_days
    if store_id == "default" and days is not None:
        raise InvalidRequest.of(
            "expires_after", days, "null for the vector store 'default'",
            "make a vector store of its own for documents that may expire",
        )  # fmt: skip
    store = service.change_collection(
        store_id, tenant=tenant,
        name=before.name if body.name is None else body.name,
        metadata=(body.metadata or {}) if "metadata" in given else before.metadata,
        expires_after_days=days,
    )  # fmt: skip
    return JSONResponse(_store_object(service, shelf, tenant, store))


@router.delete("/{store_id}", response_model=None)
def delete_vector_store(
    store_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Forget a vector store and its documents; uploaded files stay."""
    if not service.delete_collection(store_id, tenant=tenant):
        raise NotFound(f"No such vector store: '{store_id[:80]}'.", param="vector_store_id")
    for file_id in shelf.attached(tenant, store_id):
        shelf.detach(tenant, file_id, store_id)
    return JSONResponse({"id": store_id, "object": "vector_store.deleted", "deleted": True})


@router.post("/{store_id}/search", response_model=None)
def search_vector_store(
    store_id: str, body: SearchQuery, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """The best passages, best first; of several queries each passage's best score counts."""
    ranking = body.ranking_options.to_ranking() if body.ranking_options else None
    best: dict[str, Passage] = {}
    for query in body.query:
        for passage in service.search(
            query, top_k=body.max_num_results, tenant=tenant, collection=store_id,
            filters=body.filters, ranking=ranking,
        ):  # fmt: skip
            known = best.get(passage.chunk_id)
            if known is None or passage.score > known.score:
                best[passage.chunk_id] = passage
    ranked = sorted(best.values(), key=lambda passage: -passage.score)[: body.max_num_results]
    holders = {
        attachment.document.document_id: (file_id, attachment)
        for file_id, attachment in attachments_of(service, shelf, tenant, store_id).items()
        if attachment.document is not None
    }
    data = []
    for passage in ranked:
        file_id, holder = holders.get(passage.document_id, (passage.document_id, None))
        name = shelf.name(tenant, file_id) or passage.title
        data.append(_hit(passage, file_id, name, holder))
    return JSONResponse(
        {
            "object": "vector_store.search_results.page",
            "search_query": body.query,
            "data": data,
            "has_more": False,
            "next_page": None,
        }
    )


def _days(expiry: ExpiresAfter | None) -> int | None:
    return None if expiry is None else expiry.days


def _store_object(service: Service, shelf: FileShelf, tenant: str, store: CollectionInfo) -> Json:
    found = attachments_of(service, shelf, tenant, store.id).values()
    documents = {a.document.document_id: a.document for a in found if a.document is not None}
    failed = sum(a.document is None for a in found)
    active, ends, days = store.last_active_at, store.expires_at, store.expires_after_days
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": int(store.created_at),
        "name": store.name,
        "status": "expired" if ends is not None and ends <= time.time() else "completed",
        "usage_bytes": sum(document.size_bytes for document in documents.values()),
        "file_counts": {
            "in_progress": 0,
            "completed": len(found) - failed,
            "failed": failed,
            "cancelled": 0,
            "total": len(found),
        },
        "last_active_at": None if active is None else int(active),
        "expires_after": None if days is None else {"anchor": "last_active_at", "days": days},
        "expires_at": None if ends is None else int(ends),
        "metadata": store.metadata,
    }


def _hit(passage: Passage, file_id: str, name: str, holder: Attachment | None) -> Json:
    """OpenAI's hit; `chunkcache` has the passage, and how many chunks its document has."""
    document = holder.document if holder else None
    return {
        "file_id": file_id,
        "filename": name,
        "score": passage.score,
        "attributes": holder.attributes if holder else {},
        "content": [{"type": "text", "text": passage.text}],
        "chunkcache": {
            **passage.model_dump(mode="json"),
            "num_chunks": document.num_chunks if document else None,
        },
    }
