"""`/v1/vector_stores`: collections of documents, under OpenAI's name for them.

A vector store holds one document per file name, see `attachments`. Ingestion happens while the
attaching request waits, so a file's status is final at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field

from chunkcache.errors import NotFound
from chunkcache.server.attachments import (
    attach_file,
    attachments_of,
    release_document,
)
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ServiceDep, ShelfDep, TenantDep
from chunkcache.server.paging import PageQuery, page
from chunkcache.server.shapes.body import JsonBody

if TYPE_CHECKING:
    from chunkcache.protocol import CollectionInfo, Json, Passage
    from chunkcache.server.backend import Service
    from chunkcache.server.files import Attachment, Attributes, FileShelf

router = APIRouter(prefix="/v1/vector_stores", route_class=BoundedRoute)
_Key = Annotated[str, Field(max_length=64)]
_Value = Annotated[str, Field(max_length=512)] | bool | float


class CreateVectorStore(JsonBody):
    """A name, and files to attach at once."""

    name: str | None = Field(None, max_length=256)
    file_ids: list[str] = Field(default_factory=list, max_length=500)


class AttachFile(JsonBody):
    """Which file, and labels for it."""

    file_id: str
    attributes: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = None


class SearchQuery(JsonBody):
    """What to look for. Queries are searched as they are."""

    query: str = Field(min_length=1)
    max_num_results: int = Field(10, ge=1, le=50)
    rewrite_query: Literal[False] | None = False


@router.post("", response_model=None)
def create_vector_store(
    body: CreateVectorStore, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """A new vector store, with the given files attached; unknown files are an error first."""
    for file_id in body.file_ids:
        shelf.get(tenant, file_id)
    store = service.create_collection(body.name or "", tenant=tenant)
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


@router.post("/{store_id}/files", response_model=None)
def attach_vector_store_file(
    store_id: str, body: AttachFile, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Ingest an uploaded file. A file that cannot be read gets the status `failed`."""
    service.collection(store_id, tenant=tenant)
    attributes = body.attributes or {}
    attachment = attach_file(service, shelf, tenant, store_id, body.file_id, attributes)
    return JSONResponse(_file_object(shelf, tenant, store_id, body.file_id, attachment))


@router.get("/{store_id}/files", response_model=None)
def list_vector_store_files(
    store_id: str,
    query: Annotated[PageQuery, Query()],
    service: ServiceDep,
    shelf: ShelfDep,
    tenant: TenantDep,
) -> JSONResponse:
    """The files of a vector store."""
    found = attachments_of(service, shelf, tenant, store_id)
    objects = [_file_object(shelf, tenant, store_id, *item) for item in found.items()]
    return JSONResponse(page(objects, query))


@router.get("/{store_id}/files/{file_id}", response_model=None)
def get_vector_store_file(
    store_id: str, file_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """One file of a vector store."""
    attachment = _attachment(service, shelf, tenant, store_id, file_id)
    return JSONResponse(_file_object(shelf, tenant, store_id, file_id, attachment))


@router.delete("/{store_id}/files/{file_id}", response_model=None)
def detach_vector_store_file(
    store_id: str, file_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Take a file out of a vector store; the uploaded file stays."""
    attachment = _attachment(service, shelf, tenant, store_id, file_id)
    shelf.detach(tenant, file_id, store_id)
    release_document(service, shelf, tenant, store_id, attachment)
    return JSONResponse({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})


@router.post("/{store_id}/search", response_model=None)
def search_vector_store(
    store_id: str, body: SearchQuery, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """The best passages, best first."""
    passages = service.search(
        body.query, top_k=body.max_num_results, tenant=tenant, collection=store_id
    )
    holders = {
        attachment.document.document_id: (file_id, attachment.attributes)
        for file_id, attachment in attachments_of(service, shelf, tenant, store_id).items()
        if attachment.document is not None
    }
    return JSONResponse(
        {
            "object": "vector_store.search_results.page",
            "search_query": [body.query],
            "data": [_hit(p, *holders.get(p.document_id, (p.document_id, {}))) for p in passages],
            "has_more": False,
            "next_page": None,
        }
    )


def _attachment(
    service: Service, shelf: FileShelf, tenant: str, store_id: str, file_id: str
) -> Attachment:
    found = attachments_of(service, shelf, tenant, store_id).get(file_id)
    if found is None:
        raise NotFound(f"No such file in the vector store: '{file_id[:80]}'.", param="file_id")
    return found


def _store_object(service: Service, shelf: FileShelf, tenant: str, store: CollectionInfo) -> Json:
    found = attachments_of(service, shelf, tenant, store.id).values()
    documents = {a.document.document_id: a.document for a in found if a.document is not None}
    failed = sum(a.document is None for a in found)
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": int(store.created_at),
        "name": store.name,
        "status": "completed",
        "usage_bytes": sum(document.size_bytes for document in documents.values()),
        "file_counts": {
            "in_progress": 0,
            "completed": len(found) - failed,
            "failed": failed,
            "cancelled": 0,
            "total": len(found),
        },
        "last_active_at": None,
        "metadata": {},
    }


def _file_object(
    shelf: FileShelf, tenant: str, store_id: str, file_id: str, attachment: Attachment
) -> Json:
    """OpenAI's `vector_store.file`; `chunkcache` has the upload's name and the `DocumentInfo`."""
    document, error = attachment.document, attachment.error
    return {
        "id": file_id,
        "object": "vector_store.file",
        "created_at": int(attachment.created_at),
        "vector_store_id": store_id,
        "usage_bytes": document.size_bytes if document else 0,
        "status": "completed" if document else "failed",
        "last_error": {"code": "invalid_file", "message": error} if error else None,
        "attributes": attachment.attributes,
        "chunkcache": {
            "filename": shelf.name(tenant, file_id),
            "document": document.model_dump(mode="json") if document else None,
        },
    }


def _hit(passage: Passage, file_id: str, attributes: Attributes) -> Json:
    return {
        "file_id": file_id,
        "filename": passage.title,
        "score": passage.score,
        "attributes": attributes,
        "content": [{"type": "text", "text": passage.text}],
        "chunkcache": passage.model_dump(mode="json"),
    }
