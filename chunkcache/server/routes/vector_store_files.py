"""`/v1/vector_stores/{id}/files` and `/file_batches`: what a vector store holds.

A vector store holds one document per file name, see `attachments`. Ingestion happens while the
attaching request waits, so a batch is complete at once. A batch is what its files' records say of
it: one whose files were all taken out again is gone.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.server.attachments import (
    attach_file,
    attachments_of,
    relabel,
    release_document,
)
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ServiceDep, ShelfDep, TenantDep
from chunkcache.server.paging import PageQuery, page
from chunkcache.server.shapes.vector_stores import (
    AttachFile,
    ChunkingStrategy,
    CreateFileBatch,
    UpdateFile,
)

if TYPE_CHECKING:
    from chunkcache.protocol import Json
    from chunkcache.server.backend import Service
    from chunkcache.server.files import Attachment, FileShelf

router = APIRouter(prefix="/v1/vector_stores/{store_id}", route_class=BoundedRoute)


class FilesQuery(PageQuery):
    """A page of files, of one status only if that is given."""

    filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None


def check_chunking(service: Service, strategy: ChunkingStrategy | None) -> None:
    """One chunk size for all: passages of every size would never meet in the cache.

    Raises:
        InvalidRequest: sizes that are not this server's.
    """
    retrieval = service.settings.retrieval
    static = strategy.static if strategy else None
    if static is None:
        return
    given = (static.max_chunk_size_tokens, static.chunk_overlap_tokens)
    ours = (retrieval.chunk_tokens, retrieval.overlap_tokens)
    if given != ours:
        raise InvalidRequest.of(
            "chunking_strategy.static", given,
            f"{ours}, this server's retrieval.chunk_tokens and retrieval.overlap_tokens",
            "use {'type': 'auto'}, or change those settings",
        )  # fmt: skip


@router.post("/files", response_model=None)
def attach_vector_store_file(
    store_id: str, body: AttachFile, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Ingest an uploaded file. A file that cannot be read gets the status `failed`."""
    service.collection(store_id, tenant=tenant)
    check_chunking(service, body.chunking_strategy)
    attributes = body.attributes or {}
    attachment = attach_file(service, shelf, tenant, store_id, body.file_id, attributes)
    return JSONResponse(_file_object(service, shelf, tenant, store_id, body.file_id, attachment))


@router.get("/files", response_model=None)
def list_vector_store_files(
    store_id: str,
    query: Annotated[FilesQuery, Query()],
    service: ServiceDep,
    shelf: ShelfDep,
    tenant: TenantDep,
) -> JSONResponse:
    """The files of a vector store."""
    found = attachments_of(service, shelf, tenant, store_id)
    return JSONResponse(page(_files(service, shelf, tenant, store_id, found, query), query))


@router.get("/files/{file_id}", response_model=None)
def get_vector_store_file(
    store_id: str, file_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """One file of a vector store."""
    attachment = _attachment(service, shelf, tenant, store_id, file_id)
    return JSONResponse(_file_object(service, shelf, tenant, store_id, file_id, attachment))


@router.post("/files/{file_id}", response_model=None)
def update_vector_store_file(
    store_id: str,
    file_id: str,
    body: UpdateFile,
    service: ServiceDep,
    shelf: ShelfDep,
    tenant: TenantDep,
) -> JSONResponse:
    """Give a file other attributes; searches filter by them from now on."""
    before = _attachment(service, shelf, tenant, store_id, file_id)
    attachment = before.model_copy(update={"attributes": body.attributes or {}})
    relabel(service, shelf, tenant, store_id, file_id, attachment)
    return JSONResponse(_file_object(service, shelf, tenant, store_id, file_id, attachment))


@router.get("/files/{file_id}/content", response_model=None)
def get_vector_store_file_content(
    store_id: str, file_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """A file's text, as it was read."""
    attachment = _attachment(service, shelf, tenant, store_id, file_id)
    if attachment.document is None:
        raise InvalidRequest(f"file_id: {attachment.error}", param="file_id")
    _, text = service.document_text(
        attachment.document.document_id, tenant=tenant, collection=store_id
    )
    return JSONResponse(
        {
            "object": "vector_store.file_content.page",
            "data": [{"type": "text", "text": text}],
            "has_more": False,
            "next_page": None,
        }
    )


@router.delete("/files/{file_id}", response_model=None)
def detach_vector_store_file(
    store_id: str, file_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Take a file out of a vector store; the uploaded file stays."""
    attachment = _attachment(service, shelf, tenant, store_id, file_id)
    shelf.detach(tenant, file_id, store_id)
    release_document(service, shelf, tenant, store_id, attachment)
    return JSONResponse({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})


# ---------------------------------------------------------------- batches


@router.post("/file_batches", response_model=None)
def create_file_batch(
    store_id: str, body: CreateFileBatch, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Ingest several uploaded files; unknown ones are an error before any is attached."""
    service.collection(store_id, tenant=tenant)
    for wanted in body.wanted:
        check_chunking(service, wanted.chunking_strategy)
        shelf.get(tenant, wanted.file_id)
    batch_id = f"vsfb_{secrets.token_hex(12)}"
    for wanted in body.wanted:
        labels = wanted.attributes or {}
        attach_file(service, shelf, tenant, store_id, wanted.file_id, labels, batch_id)
    found = _batch(service, shelf, tenant, store_id, batch_id)
    return JSONResponse(_batch_object(store_id, batch_id, found))


@router.get("/file_batches/{batch_id}", response_model=None)
@router.post("/file_batches/{batch_id}/cancel", response_model=None)
def get_file_batch(
    store_id: str, batch_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """One batch. Nothing of it is under way any more, so that there is nothing to cancel."""
    found = _batch(service, shelf, tenant, store_id, batch_id)
    return JSONResponse(_batch_object(store_id, batch_id, found))


@router.get("/file_batches/{batch_id}/files", response_model=None)
def list_file_batch(
    store_id: str,
    batch_id: str,
    query: Annotated[FilesQuery, Query()],
    service: ServiceDep,
    shelf: ShelfDep,
    tenant: TenantDep,
) -> JSONResponse:
    """The files of a batch."""
    found = _batch(service, shelf, tenant, store_id, batch_id)
    return JSONResponse(page(_files(service, shelf, tenant, store_id, found, query), query))


def _batch(
    service: Service, shelf: FileShelf, tenant: str, store_id: str, batch_id: str
) -> dict[str, Attachment]:
    attached = attachments_of(service, shelf, tenant, store_id)
    found = {file_id: one for file_id, one in attached.items() if one.batch == batch_id}
    if not found:
        raise NotFound(f"No such file batch: '{batch_id[:80]}'.", param="batch_id")
    return found


def _batch_object(store_id: str, batch_id: str, found: dict[str, Attachment]) -> Json:
    failed = sum(one.document is None for one in found.values())
    return {
        "id": batch_id,
        "object": "vector_store.files_batch",
        "created_at": int(min(one.created_at for one in found.values())),
        "vector_store_id": store_id,
        "status": "completed",
        "file_counts": {
            "in_progress": 0,
            "completed": len(found) - failed,
            "failed": failed,
            "cancelled": 0,
            "total": len(found),
        },
    }


# ---------------------------------------------------------------- files


def _attachment(
    service: Service, shelf: FileShelf, tenant: str, store_id: str, file_id: str
) -> Attachment:
    found = attachments_of(service, shelf, tenant, store_id).get(file_id)
    if found is None:
        raise NotFound(f"No such file in the vector store: '{file_id[:80]}'.", param="file_id")
    return found


def _files(
    service: Service,
    shelf: FileShelf,
    tenant: str,
    store_id: str,
    found: dict[str, Attachment],
    query: FilesQuery,
) -> list[Json]:
    objects = [_file_object(service, shelf, tenant, store_id, *item) for item in found.items()]
    return [one for one in objects if query.filter in (None, one["status"])]


def _file_object(
    service: Service,
    shelf: FileShelf,
    tenant: str,
    store_id: str,
    file_id: str,
    attachment: Attachment,
) -> Json:
    """OpenAI's `vector_store.file`; `chunkcache` has the upload's name and the `DocumentInfo`."""
    document, error = attachment.document, attachment.error
    retrieval = service.settings.retrieval
    return {
        "id": file_id,
        "object": "vector_store.file",
        "created_at": int(attachment.created_at),
        "vector_store_id": store_id,
        "usage_bytes": document.size_bytes if document else 0,
        "status": "completed" if document else "failed",
        "last_error": {"code": "invalid_file", "message": error} if error else None,
        "attributes": attachment.attributes,
        "chunking_strategy": {
            "type": "static",
            "static": {
                "max_chunk_size_tokens": retrieval.chunk_tokens,
                "chunk_overlap_tokens": retrieval.overlap_tokens,
            },
        },
        "chunkcache": {
            "filename": shelf.name(tenant, file_id),
            "document": document.model_dump(mode="json") if document else None,
        },
    }
