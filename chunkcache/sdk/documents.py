"""Flows over documents: ingest, list, remove. See `flows` for what a flow is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.protocol import DocumentInfo, IngestReport
from chunkcache.sdk.calls import Call, segment
from chunkcache.sdk.results import model_of, reading
from chunkcache.sdk.sources import sources_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chunkcache.protocol import Json
    from chunkcache.sdk.flows import Flow
    from chunkcache.sdk.sources import Given, Source

_PAGE = 100  # the most that a list of a vector store's files gives at once


@dataclass(frozen=True, slots=True)
class _Held:
    """A document in a vector store. It was not uploaded when it has no `filename`."""

    file_id: str
    filename: str | None
    document: DocumentInfo


def documents(vector_store_id: str) -> Flow[list[DocumentInfo]]:
    """All documents of a vector store, each once."""
    held = yield from _held(vector_store_id)
    return list({item.document.document_id: item.document for item in held}.values())


def remove(document_id: str, vector_store_id: str) -> Flow[bool]:
    """Take a document out, and delete the uploads that are in no other vector store."""
    held = yield from _held(vector_store_id)
    mine = [item for item in held if item.document.document_id == document_id]
    for item in mine:
        if item.filename is None:
            yield Call("DELETE", f"{_files_path(vector_store_id)}/{segment('id', item.file_id)}")
        else:
            yield from _release(item.file_id, vector_store_id)
    return bool(mine)


def ingest(given: Given | Iterable[Given], vector_store_id: str) -> Flow[IngestReport]:
    """Upload what is new or has changed; what cannot be read is a problem in the report."""
    sources = sources_of(given)
    held = yield from _held(vector_store_id)
    before = {item.filename: item for item in held if item.filename is not None}
    report = IngestReport()
    for source in sources:
        try:
            yield from _ingest_one(source, before, vector_store_id, report)
        except (OSError, InvalidRequest) as error:
            reason = error.message if isinstance(error, InvalidRequest) else error.strerror
            report.skipped += 1
            report.problems.append(f"{source.name}: {reason}")
    return report


def _ingest_one(
    source: Source, before: dict[str, _Held], vector_store_id: str, report: IngestReport
) -> Flow[None]:
    sha256 = source.sha256()
    known = before.get(source.name)
    if known is not None and known.document.sha256 == sha256:
        report.unchanged += 1
        return
    # Not repeatable: every upload is a file of its own.
    uploaded = yield Call("POST", "/v1/files", upload=source, repeatable=False)
    with reading("the uploaded file"):
        file_id, name = str(uploaded["id"]), str(uploaded["filename"])
    attached = yield Call("POST", _files_path(vector_store_id), {"file_id": file_id})
    with reading("the attached file"):
        problem, document = attached["last_error"], attached["chunkcache"]["document"]
        reason = str(problem["message"]) if document is None else ""
        info = model_of(DocumentInfo, document) if document is not None else None
    if info is None:
        yield Call("DELETE", f"/v1/files/{segment('id', file_id)}")
        raise InvalidRequest(reason.removeprefix(f"{name}: "), param="file")
    older = before.get(name)  # under the name that the server gave it
    before[name] = _Held(file_id, name, info)
    _count(report, older, info)
    report.problems += [f"{name}: {problem}" for problem in info.problems]
    if older is not None:
        yield from _release(older.file_id, vector_store_id)


def _count(report: IngestReport, older: _Held | None, info: DocumentInfo) -> None:
    if older is not None and older.document.sha256 == info.sha256:
        report.unchanged += 1
        return
    report.added += older is None
    report.updated += older is not None
    report.chunks += info.num_chunks
    report.tokens += info.num_tokens


def _release(file_id: str, vector_store_id: str) -> Flow[None]:
    """Delete an upload, or only detach it when it is in another vector store too."""
    file = segment("id", file_id)
    try:
        upload = yield Call("GET", f"/v1/files/{file}")
        with reading("the file"):
            elsewhere = set(upload["chunkcache"]["vector_store_ids"]) - {vector_store_id}
        where = _files_path(vector_store_id) if elsewhere else "/v1/files"
        yield Call("DELETE", f"{where}/{file}")
    except NotFound:
        return  # somebody else was first


def _held(vector_store_id: str) -> Flow[list[_Held]]:
    query: dict[str, str | int] = {"limit": _PAGE, "order": "asc"}
    found: list[_Held] = []
    while True:
        reply = yield Call("GET", _files_path(vector_store_id), query=dict(query))
        with reading("the list of files"):
            found += [_held_of(item) for item in reply["data"] if item["status"] == "completed"]
            if not reply["has_more"]:
                return found
            query["after"] = str(reply["last_id"])


def _held_of(item: Json) -> _Held:
    more = item["chunkcache"]
    return _Held(item["id"], more["filename"], model_of(DocumentInfo, more["document"]))


def _files_path(vector_store_id: str) -> str:
    return f"/v1/vector_stores/{segment('vector_store_id', vector_store_id)}/files"
