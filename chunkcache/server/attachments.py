"""Files in vector stores: the seam between the file shelf and the service's catalog."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.server.files import Attachment

if TYPE_CHECKING:
    from chunkcache.protocol import DocumentInfo, Json
    from chunkcache.server.backend import Service
    from chunkcache.server.files import Attributes, FileShelf


def attach_file(
    service: Service,
    shelf: FileShelf,
    tenant: str,
    store_id: str,
    file_id: str,
    attributes: Attributes,
) -> Attachment:
    """Ingest a file into a vector store and record the outcome, good or bad.

    A file that cannot be read is not an error of the request: the attachment says why, as OpenAI's
    `last_error` does.

    Raises:
        NotFound: no such file or vector store, also when the file was deleted meanwhile.
    """
    data, name = shelf.read(tenant, file_id), shelf.get(tenant, file_id).filename
    document: DocumentInfo | None = None
    problem: str | None = None
    try:
        document = service.ingest_bytes(
            name, data, tenant=tenant, collection=store_id, attributes=attributes or None
        )
    except InvalidRequest as error:
        problem = error.message
    attachment = Attachment(
        created_at=time.time(), document=document, error=problem, attributes=attributes
    )
    try:
        shelf.attach(tenant, file_id, store_id, attachment)
    except NotFound:
        release_document(service, shelf, tenant, store_id, attachment)
        raise
    return attachment


def release_document(
    service: Service, shelf: FileShelf, tenant: str, store_id: str, attachment: Attachment
) -> None:
    """Remove an attachment's document, unless another file with the same content put it there."""
    if attachment.document is None:
        return
    document_id = attachment.document.document_id
    others = shelf.attached(tenant, store_id).values()
    if all(a.document is None or a.document.document_id != document_id for a in others):
        service.remove(document_id, tenant=tenant, collection=store_id)


def attachments_of(
    service: Service, shelf: FileShelf, tenant: str, store_id: str
) -> dict[str, Attachment]:
    """All of a vector store by file id: attached files, then documents that came otherwise.

    A document ingested without an upload (from the command line, say) goes by its document id.
    """
    attached = shelf.attached(tenant, store_id)
    documents = service.documents(tenant=tenant, collection=store_id)
    known = {a.document.document_id for a in attached.values() if a.document is not None}
    others = {
        d.document_id: Attachment(created_at=d.added_at, document=d)
        for d in documents
        if d.document_id not in known
    }
    merged = {**others, **attached}
    return dict(sorted(merged.items(), key=lambda item: (item[1].created_at, item[0])))


def file_ids_by_document(shelf: FileShelf, tenant: str, store_id: str) -> dict[str, str]:
    """Document id to file id, for documents that came from an upload."""
    return {
        a.document.document_id: file_id
        for file_id, a in shelf.attached(tenant, store_id).items()
        if a.document is not None
    }


def store_file_object(store_id: str, file_id: str, attachment: Attachment) -> Json:
    """OpenAI's `vector_store.file`, plus the `DocumentInfo` under `chunkcache`."""
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
        "chunkcache": document.model_dump(mode="json") if document else None,
    }
