"""Files, uploads and texts → documents in the catalog, each absent or whole.

Many documents go through a pipeline (`pipeline.py`): read and split ahead, embedded together,
written in order, some in one transaction. A document is acknowledged (counted, reported as
progress) once it is written.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chunkcache.errors import InvalidRequest
from chunkcache.protocol import IngestReport
from chunkcache.retrieval.chunking import (
    split_document,
    take_chunks,
    texts_to_embed,
    vectors_of,
)
from chunkcache.retrieval.confined import ReadLimits
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
from chunkcache.retrieval.given_texts import NumberedText, extracted, numbered
from chunkcache.retrieval.identity import document_of_file, reads_the_same
from chunkcache.retrieval.includes import with_includes
from chunkcache.retrieval.loaders import READERS_VERSION, Extracted, check_size, load
from chunkcache.retrieval.pipeline import embed_beside, read_ahead
from chunkcache.retrieval.prepared import Prepared, Source
from chunkcache.retrieval.refresh import refresh
from chunkcache.retrieval.walk import find_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from chunkcache.config import RetrievalSettings
    from chunkcache.protocol import DocumentInfo, GivenDocument
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.documents import Attributes
    from chunkcache.retrieval.embedder import Embedder
    from chunkcache.retrieval.refresh import Refreshed
    from chunkcache.retrieval.splitter import Splitter

    _Written = tuple["Change", DocumentInfo]

Change = Literal["added", "updated", "unchanged", "renamed"]
_PROBLEMS_KEPT = 50  # of one document


class Ingestor:
    """Reads documents into a catalog. Thread-safe.

    A document is known by its source: the resolved path of a file (see `identity` for one that has
    moved), the id or else the name of an upload, the id of a text. The same content again costs a
    hash. Other content replaces the document in one transaction, and only chunks whose text is new
    are embedded.
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
        self._limits = ReadLimits(
            settings.read_memory_bytes, settings.read_cpu_s, text_bytes=settings.max_file_bytes
        )
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
        paths = [Path(path) for path in paths]
        found = find_files(paths)
        roots = [path.resolve() for path in paths if path.is_dir()]
        report = IngestReport(skipped=found.skipped, problems=found.problems)
        read = partial(self._prepare_file, tenant, collection, roots)
        prepared = read_ahead(read, ((_size_bytes(path), path) for path in found.files))
        done = 0
        for some, made in embed_beside(self._embedder, prepared):
            for one, written in self._write_together(some, partial(self._write_or_retract, made)):
                _count(report, one, written)
                done += 1
                if on_progress is not None:
                    on_progress(done, len(found.files), one.name)
        return report

    def ingest_bytes(
        self,
        name: str,
        data: bytes,
        *,
        tenant: str = PUBLIC_TENANT,
        collection: str = DEFAULT_COLLECTION,
        attributes: Attributes | None = None,
        upload_id: str = "",
    ) -> DocumentInfo:
        """Read one uploaded file.

        Args:
            upload_id: whose document it is: two uploads of one name are two documents. Without an
                id the name says so, and a document of the same name is replaced.

        Raises:
            InvalidRequest: the file cannot be read; the message says why. Nothing has changed then.
            NotFound: the tenant has no such collection.
            StoreError: the catalog cannot be written.
        """
        self.refresh(tenant=tenant, collection=collection)
        document_id = document_id_of("upload", f"{upload_id}\0{name}" if upload_id else name)
        sha256 = hashlib.sha256(data).hexdigest()
        source = Source(tenant, collection, document_id, name, len(data), sha256, attributes)
        try:
            one = self._prepare(source, partial(self._extract, name, data))
            made = dict(zip(one.texts, self._embedder.embed(one.texts), strict=True))
            return self._write(made, one)[1]
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

        Of different texts with one id the first is taken; the others are listed as problems.

        Raises:
            NotFound: the tenant has no such collection.
            StoreError: the catalog cannot be written.
        """
        self.refresh(tenant=tenant, collection=collection)
        report = IngestReport()
        read = partial(self._prepare_text, tenant, collection)
        prepared = read_ahead(read, ((len(one.given.text), one) for one in numbered(documents)))
        for some, made in embed_beside(self._embedder, prepared):
            for one, written in self._write_together(some, partial(self._write, made)):
                _count(report, one, written)
        return report

    def refresh(
        self, *, tenant: str = PUBLIC_TENANT, collection: str = DEFAULT_COLLECTION
    ) -> Refreshed:
        """Bring what another tokenizer, chunk size or embedder left up to date; see `refresh`.

        To be called before chunks are warmed. Raises `NotFound`.
        """
        with self._refresh_lock:  # two threads would only do the same work twice
            return refresh(self._catalog, self._splitter, self._embedder, tenant, collection)

    def _extract(self, name: str, data: bytes) -> Extracted:
        return load(name, data, self._limit_bytes, self._limits)

    def _read(self, path: Path) -> bytes:
        check_size(path.stat().st_size, self._limit_bytes)
        with path.open("rb") as stream:
            data = stream.read(self._limit_bytes + 1)
        check_size(len(data), self._limit_bytes)
        return data

    def _prepare_file(
        self, tenant: str, collection: str, roots: Sequence[Path], path: Path
    ) -> Prepared:
        name = printable(path)
        try:
            data = with_includes(path, roots, self._read, self._limit_bytes)
            sha256 = hashlib.sha256(data).hexdigest()
            document_id, moved = document_of_file(self._catalog, tenant, collection, path, sha256)
            source = Source(
                tenant, collection, document_id, path.name, len(data), sha256,
                path=path, renamed=moved,
            )  # fmt: skip
        except (OSError, InvalidRequest) as error:
            return Prepared(name, problem=error)
        try:
            extract = partial(self._extract, source.name, data)
            return self._prepare(source, extract, name=name)
        except InvalidRequest as error:
            return Prepared(name, source, problem=error)

    def _prepare_text(self, tenant: str, collection: str, numbered: NumberedText) -> Prepared:
        given = numbered.given
        name = printable(given.id) or str(numbered.index)
        try:
            if numbered.other is not None:
                raise InvalidRequest(
                    f"text {numbered.index} has the id of text {numbered.other} and is another. "
                    "Hint: an id for each; one call after the other replaces"
                )
            content = [given.title, given.url, valid_unicode("text", given.text)]
            data = json.dumps(content).encode()
            sha256 = hashlib.sha256(data).hexdigest()
            document_id = document_id_of("text", given.id or sha256)
            source = Source(tenant, collection, document_id, "", len(data), sha256)
            return self._prepare(source, partial(extracted, given), name=name)
        except InvalidRequest as error:
            return Prepared(name, problem=error)

    def _prepare(
        self,
        source: Source,
        extract: Callable[[], Extracted],
        *,
        name: str = "",
    ) -> Prepared:
        """Everything before embedding."""
        called = printable(source.name)
        before = self._catalog.document_info(*source.where, source.document_id)
        if before is not None and self._is_current(source, before):
            return Prepared(name, source, before=before)
        found = extract()
        document = Document(
            document_id=source.document_id,
            title=found.title,
            url=found.url,
            sha256=source.sha256,
            size_bytes=source.size_bytes,
            kind=found.kind,
            text=valid_unicode("text", found.text),
            attributes=source.attributes or {},
            reader=READERS_VERSION,
            name=called,
            path=source.path,
            problems=_first(found.problems),
        )
        if found.kind is DocumentKind.CHUNKS:
            chunks, left_out = take_chunks(self._splitter, document, found.chunks)
            document = replace(document, problems=_first([*found.problems, *left_out]))
        else:
            chunks = split_document(self._splitter, document)
        if not chunks:
            reason = document.problems[0] if document.problems else "there is no text in it"
            raise InvalidRequest(reason, param="file")
        known: Mapping[str, np.ndarray] = {}
        if before is not None:
            space = vector_space(self._embedder)
            known = self._catalog.entries.vectors_by_text(*source.where, source.document_id, space)
        texts = texts_to_embed(chunks, known)
        return Prepared(name, source, document, chunks, known, texts)

    def _is_current(self, source: Source, before: DocumentInfo) -> bool:
        """Whether the catalog has these bytes, and read as they would be now."""
        reader = self._catalog.reader(*source.where, source.document_id)
        same = (before.sha256, reader) == (source.sha256, READERS_VERSION)
        return same and reads_the_same(before, printable(source.name))

    def _write_together(
        self, some: Sequence[Prepared], write: Callable[[Prepared], _Written]
    ) -> Iterator[tuple[Prepared, _Written | OSError | InvalidRequest]]:
        """What became of each, once all of them are in the catalog: one transaction."""
        results: list[_Written | OSError | InvalidRequest] = []
        changes = any(one.document is not None for one in some)
        with self._catalog.together() if changes else nullcontext():
            for one in some:
                try:
                    results.append(write(one))
                except (OSError, InvalidRequest) as error:
                    results.append(error)
        yield from zip(some, results, strict=True)

    def _write(self, made: Mapping[str, np.ndarray], one: Prepared) -> _Written:
        """The document into the catalog, unless it is there by now. Raises its `problem`."""
        if one.problem is not None:
            raise one.problem
        source, document = one.source, one.document
        assert source is not None
        before = one.before
        if document is not None:
            before = self._catalog.document_info(*source.where, source.document_id)
        if before is not None and (document is None or self._is_current(source, before)):
            return "renamed" if source.renamed else "unchanged", self._keep(source, before)
        assert document is not None
        info = self._catalog.put_document(
            *source.where,
            document,
            one.chunks,
            vectors_of(one.chunks, self._embedder.dim, one.known, made),
            splitter=self._splitter.fingerprint,
            space=vector_space(self._embedder),
        )
        if source.renamed:
            return "renamed", info
        return ("added" if before is None else "updated"), info

    def _keep(self, source: Source, before: DocumentInfo) -> DocumentInfo:
        """The document as it is, under the name that its file has now."""
        where = (*source.where, source.document_id)
        if source.attributes is not None:
            self._catalog.set_attributes(*where, source.attributes)
        name, path = printable(source.name), printable(source.path or "")
        if (before.name, before.path) == (name, path):
            return before
        self._catalog.files.name(*where, name, source.path)
        return before.model_copy(update={"name": name, "path": path})

    def _write_or_retract(self, made: Mapping[str, np.ndarray], one: Prepared) -> _Written:
        """Of a file: what it was before is no answer any more when it cannot be read as text."""
        try:
            return self._write(made, one)
        except InvalidRequest as error:
            source = one.source
            if source is not None and self._catalog.remove_document(
                source.document_id, *source.where
            ):
                raise InvalidRequest(f"{error}. Its earlier version was removed") from error
            raise


def _size_bytes(path: Path) -> int:
    """How much reading it takes; a file that is gone says so when it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _first(problems: Sequence[str]) -> tuple[str, ...]:
    """What is kept of the problems of one document: a corpus may have millions of wrong lines."""
    more = len(problems) - _PROBLEMS_KEPT
    kept = tuple(problems[:_PROBLEMS_KEPT])
    return (*kept, f"and {more} more") if more > 0 else kept


def _count(
    report: IngestReport, one: Prepared, written: _Written | OSError | InvalidRequest
) -> None:
    if isinstance(written, (OSError, InvalidRequest)):
        reason = written.strerror if isinstance(written, OSError) else str(written)
        report.skipped += 1
        report.problems.append(f"{one.name}: {reason}")
        return
    change, info = written
    setattr(report, change, getattr(report, change) + 1)
    if change in ("added", "updated"):
        report.chunks += info.num_chunks
        report.tokens += info.num_tokens
    if change != "unchanged" and one.source is not None and one.source.path is not None:
        report.problems += [f"{one.name}: {what}" for what in info.problems]
