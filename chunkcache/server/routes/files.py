"""`/v1/files`. A file is kept as it is; it becomes retrievable when attached to a vector store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict

from chunkcache.errors import InvalidRequest, RequestTooLarge
from chunkcache.server.attachments import release_document
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ServiceDep, ShelfDep, TenantDep
from chunkcache.server.paging import FilePageQuery, page
from chunkcache.server.shapes.body import Parameters

if TYPE_CHECKING:
    from chunkcache.protocol import Json
    from chunkcache.server.files import StoredFile

router = APIRouter(route_class=BoundedRoute)
_NAME_LIMIT_CHARS = 512
_ABSOLUTE = re.compile(r"/|[A-Za-z]:")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


class FileUpload(Parameters):
    """The multipart form of an upload."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    file: UploadFile
    purpose: Literal["assistants", "user_data"]


@router.post("/v1/files", response_model=None)
def upload_file(
    form: Annotated[FileUpload, Form()], service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Keep an uploaded file. It is on disk when this returns."""
    limit_bytes = service.settings.retrieval.max_file_bytes
    data = form.file.file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise RequestTooLarge(
            f"file: larger than {limit_bytes} bytes. Hint: split it, or raise "
            "retrieval.max_file_bytes.",
            param="file",
        )
    name = _document_name(form.file.filename or "")
    return JSONResponse(_file_object(shelf.add(tenant, name, data, purpose=form.purpose)))


@router.get("/v1/files", response_model=None)
def list_files(
    query: Annotated[FilePageQuery, Query()], shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """The tenant's files."""
    files = [f for f in shelf.list(tenant) if query.purpose in (None, f.purpose)]
    return JSONResponse(page([_file_object(file) for file in files], query))


@router.get("/v1/files/{file_id}", response_model=None)
def get_file(file_id: str, shelf: ShelfDep, tenant: TenantDep) -> JSONResponse:
    """One file."""
    return JSONResponse(_file_object(shelf.get(tenant, file_id)))


@router.get("/v1/files/{file_id}/content", response_class=Response)
def get_file_content(file_id: str, shelf: ShelfDep, tenant: TenantDep) -> Response:
    """The bytes as they were uploaded; for saving, never for a browser to show."""
    return Response(
        shelf.read(tenant, file_id),
        media_type="application/octet-stream",
        headers={"Content-Disposition": "attachment"},
    )


@router.delete("/v1/files/{file_id}", response_model=None)
def delete_file(
    file_id: str, service: ServiceDep, shelf: ShelfDep, tenant: TenantDep
) -> JSONResponse:
    """Forget a file, and its document in every vector store it is attached to."""
    file = shelf.delete(tenant, file_id)
    for store_id, attachment in file.attachments.items():
        release_document(service, shelf, tenant, store_id, attachment)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def _document_name(filename: str) -> str:
    """The name an upload goes by: a relative path is kept, so that `a/README` is not `b/README`.

    Of an absolute path, which some clients send, only the last part is a name.

    Raises:
        InvalidRequest: nothing is left, it is too long, or has control characters.
    """
    slashed = filename.replace("\\", "/")
    parts = [part for part in slashed.split("/") if part not in ("", ".", "..")]
    if _ABSOLUTE.match(slashed):
        parts = parts[-1:]
    name = "/".join(parts)
    if not 0 < len(name) <= _NAME_LIMIT_CHARS or _CONTROLS.search(name):
        raise InvalidRequest.of(
            "file",
            filename,
            f"named with 1 to {_NAME_LIMIT_CHARS} characters, none of them a control character",
            "set the filename of the upload",
        )
    return name


def _file_object(file: StoredFile) -> Json:
    """OpenAI's `file`, plus what a client needs to ingest only what changed."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None,
        "chunkcache": {"sha256": file.sha256, "vector_store_ids": sorted(file.attachments)},
    }
