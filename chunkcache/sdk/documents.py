"""Flows over documents and vector stores: ingest, list, remove. See `flows` for what a flow is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidRequest, NotFound
from ..protocol import DocumentInfo, IngestReport
from .calls import Call, segment
from .results import model_of, reading
from .sources import sources_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..protocol import Json
    from .flows import Flow
    from .sources import Given, Source

Attributes = Mapping[str, str | float | bool]
_PAGE = 100  # the most that a list of a vector store's files gives at once


@dataclass(frozen=True, slots=True)
class Held:
    """A document in a vector store. It was not uploaded when it has no `filename`."""

    file_id: str
    filename: str | None
    document: DocumentInfo
    attributes: Attributes


def documents(vector_store_id: str) -> Flow[list[DocumentInfo]]:
    """All documents of a vector store, each once."""
    held = yield from held_in(vector_store_id)
    return list({item.document.document_id: item.document for item in held}.values())


def remove(document_id: str, vector_store_id: str) -> Flow[bool]:
    """Take a document out, and delete the uploads that are in no other vector store."""
    held = yield from held_in(vector_store_id)
    mine = [item for item in held if item.document.document_id == document_id]
    for item in mine:
        yield from let_go(item, vector_store_id)
    return bool(mine)


def ingest(given: Given | Iterable[Given], vector_store_id: str) -> Flow[IngestReport]:
    """Upload what is new or has changed; what cannot be read is a problem in the report."""
    sources = sources_of(given)
    held = yield from held_in(vector_store_id)
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
    source: Source, before: dict[str, Held], vector_store_id: str, report: IngestReport
) -> Flow[None]:
    sha256 = source.sha256()
    known = before.get(source.name)
    if known is not None and known.document.sha256 == sha256:
        report.unchanged += 1
        return
    name, made = yield from upload(source, vector_store_id)
    older = before.get(name)  # under the name that the server gave it
    before[name] = made
    _count(report, older, made.document)
    report.problems += [f"{name}: {problem}" for problem in made.document.problems]
    if older is not None:
        yield from let_go(older, vector_store_id)


def upload(
    source: Source, vector_store_id: str, attributes: Attributes | None = None
) -> Flow[tuple[str, Held]]:
    """Send a file into a vector store; the name that the server gave it, and what it is now.

    Raises:
        InvalidRequest: the server cannot read it; it is left nowhere.
    """
    # Not repeatable: every upload is a file of its own.
    uploaded = yield Call("POST", "/v1/files", upload=source, repeatable=False)
    with reading("the uploaded file"):
        file_id, name = str(uploaded["id"]), str(uploaded["filename"])
    body: Json = {"file_id": file_id, **({"attributes": dict(attributes)} if attributes else {})}
    try:
        attached = yield Call("POST", files_path(vector_store_id), body)
    except InvalidRequest:
        yield Call("DELETE", f"/v1/files/{segment('id', file_id)}")
        raise
    with reading("the attached file"):
        problem, document = attached["last_error"], attached["chunkcache"]["document"]
        reason = str(problem["message"]) if document is None else ""
        info = model_of(DocumentInfo, document) if document is not None else None
    if info is None:
        yield Call("DELETE", f"/v1/files/{segment('id', file_id)}")
        raise InvalidRequest(reason.removeprefix(f"{name}: "), param="file")
    return name, Held(file_id, name, info, dict(attributes or {}))


def _count(report: IngestReport, older: Held | None, info: DocumentInfo) -> None:
    if older is not None and older.document.sha256 == info.sha256:
        report.unchanged += 1
        return
    report.added += older is None
    report.updated += older is not None
    report.chunks += info.num_chunks
    report.tokens += info.num_tokens


def let_go(item: Held, vector_store_id: str) -> Flow[None]:
    """Take a document out, and delete its upload unless another vector store has that too."""
    file = segment("id", item.file_id)
    attached = f"{files_path(vector_store_id)}/{file}"
    try:
        if item.filename is None:
            yield Call("DELETE", attached)
            return
        kept = yield Call("GET", f"/v1/files/{file}")
        with reading("the file"):
            elsewhere = set(kept["chunkcache"]["vector_store_ids"]) - {vector_store_id}
        yield Call("DELETE", attached if elsewhere else f"/v1/files/{file}")
    except NotFound:
        return  # somebody else was first


def held_in(vector_store_id: str) -> Flow[list[Held]]:
    """Everything in a vector store that could be read, oldest first."""
    query: dict[str, str | int] = {"limit": _PAGE, "order": "asc"}
    found: list[Held] = []
    while True:
        reply = yield Call("GET", files_path(vector_store_id), query=dict(query))
        with reading("the list of files"):
            found += [_held_of(item) for item in reply["data"] if item["status"] == "completed"]
            if not reply["has_more"]:
                return found
            query["after"] = str(reply["last_id"])


def _held_of(item: Json) -> Held:
    more = item["chunkcache"]
    info = model_of(DocumentInfo, more["document"])
    return Held(item["id"], more["filename"], info, item["attributes"])


def create_store(name: str) -> Flow[str]:
    """A new, empty vector store; its id."""
    made = yield Call("POST", "/v1/vector_stores", {"name": name}, repeatable=False)
    with reading("the vector store"):
        return str(made["id"])


def delete_store(vector_store_id: str) -> Flow[bool]:
    """Forget a vector store, and the uploads that are in no other."""
    try:
        held = yield from held_in(vector_store_id)
    except NotFound:
        return False
    for item in held:
        yield from let_go(item, vector_store_id)
    with suppress(NotFound):  # somebody else was first, or the answer to a first try was lost
        yield Call("DELETE", f"/v1/vector_stores/{segment('vector_store_id', vector_store_id)}")
    return True


def files_path(vector_store_id: str) -> str:
    """Where the files of a vector store are."""
    return f"/v1/vector_stores/{segment('vector_store_id', vector_store_id)}/files"
