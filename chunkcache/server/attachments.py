"""Files in vector stores: the seam between the file shelf and the service's catalog.

A vector store holds one document per file, whatever the file is called: two uploads of one name are
two documents. The catalog decides: an attachment counts while the catalog has its document with its
content, whatever the sidecars say. (Documents attached by older versions go by their file's name,
and several files may stand for one of them.)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest, NotFound, StoreError
from chunkcache.server.files import Attachment

if TYPE_CHECKING:
    from chunkcache.protocol import DocumentInfo
    from chunkcache.server.backend import Service
    from chunkcache.server.files import Attributes, FileShelf


def attach_file(
    service: Service,
    shelf: FileShelf,
    tenant: str,
    store_id: str,
    file_id: str,
    attributes: Attributes,
    batch: str | None = None,
) -> Attachment:
    """Ingest a file into a vector store and record the outcome, good or bad.

    `batch` is the id of the request that attached it together with others.

    A file that cannot be read is not an error of the request: the attachment says why, as OpenAI's
    `last_error` does.

    Raises:
        NotFound: no such file or vector store, also when the file was deleted meanwhile.
        StoreError: the disk is full.
    """
    file = shelf.get(tenant, file_id)
    data, name, before = shelf.read(tenant, file_id), file.filename, file.attachments.get(store_id)
    document: DocumentInfo | None = None
    problem: str | None = None
    try:
        document = service.ingest_bytes(
            name, data, tenant=tenant, collection=store_id, attributes=attributes or None,
            upload_id=file_id,
        )  # fmt: skip
    except InvalidRequest as error:
        problem = error.message
    attachment = Attachment(
        created_at=time.time(), document=document, error=problem, attributes=attributes,
        batch=batch,
    )  # fmt: skip
    try:
        shelf.attach(tenant, file_id, store_id, attachment)
    except (NotFound, StoreError):  # deleted meanwhile, or the disk is full: nothing would name it
        release_document(service, shelf, tenant, store_id, attachment)
        raise
    if before is not None and _document_id(before) != _document_id(attachment):
        release_document(service, shelf, tenant, store_id, before)
    return attachment


def relabel(
    service: Service,
    shelf: FileShelf,
    tenant: str,
    store_id: str,
    file_id: str,
    attachment: Attachment,
) -> None:
    """Record an attachment whose attributes have changed, and let searches know them.

    Raises:
        NotFound: the file was deleted meanwhile.
    """
    document = attachment.document
    if document is None or file_id != document.document_id:  # else only the catalog knows it
        shelf.attach(tenant, file_id, store_id, attachment)
    if document is not None:
        service.set_attributes(
            document.document_id, attachment.attributes, tenant=tenant, collection=store_id
        )


def release_document(
    service: Service, shelf: FileShelf, tenant: str, store_id: str, attachment: Attachment
) -> None:
    """Remove the document of an attachment that is gone, unless something else put it there.

    That is, of documents that go by a name, another file of the same name and content, or a newer
    one of the same name.
    """
    if attachment.document is None:
        return
    document_id = attachment.document.document_id
    try:
        documents = _documents(service, tenant, store_id)
    except NotFound:
        return  # the whole vector store is gone
    others = _living(shelf, tenant, store_id, documents).values()
    replaced = not _lives(attachment, documents)
    shared = any(a.document and a.document.document_id == document_id for a in others)
    if not replaced and not shared:
        service.remove(document_id, tenant=tenant, collection=store_id)


def attachments_of(
    service: Service, shelf: FileShelf, tenant: str, store_id: str
) -> dict[str, Attachment]:
    """All of a vector store by file id: attached files, then documents that came otherwise.

    A document ingested without an upload (from the command line, say) goes by its document id.

    Raises:
        NotFound: there is no such vector store.
    """
    documents = _documents(service, tenant, store_id)
    attached = _living(shelf, tenant, store_id, documents)
    known = {a.document.document_id for a in attached.values() if a.document is not None}
    others = {
        document_id: Attachment(
            created_at=document.added_at, document=document, attributes=document.attributes
        )
        for document_id, document in documents.items()
        if document_id not in known
    }
    merged = {**others, **attached}
    return dict(sorted(merged.items(), key=lambda item: (item[1].created_at, item[0])))


def _documents(service: Service, tenant: str, store_id: str) -> dict[str, DocumentInfo]:
    documents = service.documents(tenant=tenant, collection=store_id)
    return {document.document_id: document for document in documents}


def _living(
    shelf: FileShelf, tenant: str, store_id: str, documents: dict[str, DocumentInfo]
) -> dict[str, Attachment]:
    """Attachments that count, failed ones too, with their documents as the catalog has them now."""
    return {
        file_id: attachment.model_copy(
            update={"document": documents[attachment.document.document_id]}
        )
        if attachment.document is not None
        else attachment
        for file_id, attachment in shelf.attached(tenant, store_id).items()
        if _lives(attachment, documents)
    }


def _document_id(attachment: Attachment) -> str | None:
    return attachment.document.document_id if attachment.document is not None else None


def _lives(attachment: Attachment, documents: dict[str, DocumentInfo]) -> bool:
    if attachment.document is None:
        return True
    now = documents.get(attachment.document.document_id)
    return now is not None and now.sha256 == attachment.document.sha256
