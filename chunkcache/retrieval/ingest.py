"""Files, uploads and texts → documents in the catalog, each in one transaction of its own."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chunkcache.errors import InvalidRequest
from chunkcache.protocol import IngestReport
from chunkcache.retrieval.chunking import embed_chunks, split_document, take_chunks
from chunkcache.retrieval.documents import (
    DEFAULT_COLLECTION,
    PUBLIC_TENANT,
    Document,
    DocumentKind,
    document_id_of,
    printable,
    valid_unicode,
    vector_space,
)
from chunkcache.retrieval.loaders import Extracted, check_size, load
from chunkcache.retrieval.refresh import refresh
from chunkcache.retrieval.walk import find_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from chunkcache.config import RetrievalSettings
    from chunkcache.protocol import DocumentInfo, GivenDocument
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.documents import Attributes
    from chunkcache.retrieval.embedder import Embedder
    from chunkcache.retrieval.refresh import Refreshed
    from chunkcache.retrieval.splitter import Splitter

Outcome = Literal["added", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class _Source:
    """One thing to ingest: where it goes, what it is called, its bytes."""

    tenant: str
    collection: str
    document_id: str
    name: str
    data: bytes
    attributes: Attributes | None = None


class Ingestor:
    """Reads documents into a catalog. Thread-safe.

    A document is known by its source: the resolved path of a file, the name of an upload, the id of
    a text. The same content again costs a hash. Other content replaces the document in one
    transaction, and only chunks whose text is new are embedded.
    """

    def __init__(
        self,
        catalog: Catalog,
        splitter: Splitter,
        embedder: Embedder,
        settings: RetrievalSettings,
    ) -> None:
        self._catalog = catalog
        self._splitter = splitter
        self._embedder = embedder
        self._limit_bytes = settings.max_file_bytes
        self._refresh_lock = threading.Lock()

    def ingest_paths(
        self,
        paths: Iterable[Path],
        *,
        tenant: str = PUBLIC_TENANT,
        collection: str = DEFAULT_COLLECTION,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> IngestReport:
        """Read files and folders. What cannot be read is skipped and listed with the reason.

        `on_progress(done, total, name)` is called after each file. When a file was ingested before
        and now has content that cannot be read as text, its earlier version is removed: it would be
        an answer from a text that is no more. Files that have vanished stay in the catalog.

        Raises:
            NotFound: the tenant has no such collection.
            StoreError: the catalog cannot be written; files ingested so far stay ingested.
        """
        self.refresh(tenant=tenant, collection=collection)
        found = find_files(Path(path) for path in paths)
        report = IngestReport(skipped=found.skipped, problems=found.problems)
        for done, path in enumerate(found.files, start=1):
            try:
                document_id = document_id_of("file", str(path))
                data = self._read(path)
                source = _Source(tenant, collection, document_id, path.name, data)
                _count(report, *self._ingest_or_retract(source))
            except (OSError, InvalidRequest) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                report.skipped += 1
                report.problems.append(f"{printable(path)}: {reason}")
            if on_progress is not None:
                on_progress(done, len(found.files), printable(path))
        return report

    def ingest_bytes(
        self,
        name: str,
        data: bytes,
        *,
        tenant: str = PUBLIC_TENANT,
        collection: str = DEFAULT_COLLECTION,
        attributes: Attributes | None = None,
    ) -> DocumentInfo:
        """Read one uploaded file; one of the same name is replaced.

        Raises:
            InvalidRequest: the file cannot be read; the message says why. Nothing has changed then.
            NotFound: the tenant has no such collection.
            StoreError: the catalog cannot be written.
        """
        self.refresh(tenant=tenant, collection=collection)
        document_id = document_id_of("upload", name)
        source = _Source(tenant, collection, document_id, name, data, attributes)
        try:
            return self._ingest(source, partial(load, name, data, self._limit_bytes))[1]
        except InvalidRequest as error:
            raise InvalidRequest(f"{printable(name)}: {error}", param="file") from error

    def ingest_texts(
        self,
        documents: Sequence[GivenDocument],
        *,
        tenant: str = PUBLIC_TENANT,
        collection: str = DEFAULT_COLLECTION,
    ) -> IngestReport:
        """Take texts as documents. A text without an id is known by its content.

        Raises:
            NotFound: the tenant has no such collection.
            StoreError: the catalog cannot be written.
        """
        self.refresh(tenant=tenant, collection=collection)
        report = IngestReport()
        for index, given in enumerate(documents):
            try:
                content = [given.title, given.url, valid_unicode("text", given.text)]
                data = json.dumps(content).encode()
                identity = given.id or hashlib.sha256(data).hexdigest()
                document_id = document_id_of("text", identity)
                source = _Source(tenant, collection, document_id, given.title, data)
                _count(report, *self._ingest(source, partial(_extracted, given)))
            except InvalidRequest as error:
                report.skipped += 1
                report.problems.append(f"{printable(given.id) or index}: {error}")
        return report

    def refresh(
        self, *, tenant: str = PUBLIC_TENANT, collection: str = DEFAULT_COLLECTION
    ) -> Refreshed:
        """Bring what another tokenizer, chunk size or embedder left up to date; see `refresh`.

        To be called before chunks are warmed. Raises `NotFound`.
        """
        with self._refresh_lock:  # two threads would only do the same work twice
            return refresh(self._catalog, self._splitter, self._embedder, tenant, collection)

    def _read(self, path: Path) -> bytes:
        check_size(path.stat().st_size, self._limit_bytes)
        with path.open("rb") as stream:
            data = stream.read(self._limit_bytes + 1)
        check_size(len(data), self._limit_bytes)
        return data

    def _ingest_or_retract(self, source: _Source) -> tuple[Outcome, DocumentInfo]:
        try:
            return self._ingest(source, partial(load, source.name, source.data, self._limit_bytes))
        except InvalidRequest as error:
            if self._catalog.remove_document(source.document_id, source.tenant, source.collection):
                raise InvalidRequest(f"{error}. Its earlier version was removed") from error
            raise

    def _ingest(
        self, source: _Source, extract: Callable[[], Extracted]
    ) -> tuple[Outcome, DocumentInfo]:
        where = (source.tenant, source.collection)
        sha256 = hashlib.sha256(source.data).hexdigest()
        before = self._catalog.document_info(*where, source.document_id)
        if before is not None and before.sha256 == sha256:
            if source.attributes is not None:
                self._catalog.set_attributes(*where, source.document_id, source.attributes)
            return "unchanged", before
        found = extract()
        document = Document(
            document_id=source.document_id,
            title=found.title,
            url=found.url,
            sha256=sha256,
            size_bytes=len(source.data),
            kind=found.kind,
            text=valid_unicode("text", found.text),
            attributes=source.attributes or {},
        )
        if found.kind is DocumentKind.CHUNKS:
            chunks = take_chunks(self._splitter, document, found.chunks)
        else:
            chunks = split_document(self._splitter, document)
        if not chunks:
            raise InvalidRequest("there is no text in it", param="file")
        space = vector_space(self._embedder)
        known = self._catalog.entries.vectors_by_text(*where, source.document_id, space)
        vectors = embed_chunks(self._embedder, chunks, known)
        info = self._catalog.put_document(
            *where, document, chunks, vectors, splitter=self._splitter.fingerprint, space=space
        )
        return ("added" if before is None else "updated"), info


def _extracted(given: GivenDocument) -> Extracted:
    title = " ".join(valid_unicode("title", given.title).split())
    valid_unicode("url", given.url)
    if not given.text.strip():
        raise InvalidRequest("there is no text in it", param="text")
    return Extracted(given.text, DocumentKind.PLAIN, title, given.url)


def _count(report: IngestReport, outcome: Outcome, info: DocumentInfo) -> None:
    setattr(report, outcome, getattr(report, outcome) + 1)
    if outcome != "unchanged":
        report.chunks += info.num_chunks
        report.tokens += info.num_tokens
