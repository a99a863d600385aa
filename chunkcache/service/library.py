"""Documents of an installation: ingest, list, search and embed. Needs the embedder, no decoder."""

from __future__ import annotations

import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING

from chunkcache.engine.loading import load_tokenizer
from chunkcache.errors import CorruptRecord, InvalidRequest, NotFound, ShuttingDown
from chunkcache.home import INDEX_FOLDER
from chunkcache.metrics import Metrics
from chunkcache.protocol import (
    CollectionInfo,
    DocumentInfo,
    GivenDocument,
    IngestReport,
    Passage,
)
from chunkcache.retrieval.damage import Damage
from chunkcache.retrieval.documents import passage_digest
from chunkcache.retrieval.embedder import Embedder, open_embedder
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.open_catalog import open_catalog
from chunkcache.retrieval.passage_matcher import PassageMatcher
from chunkcache.retrieval.retriever import Retriever
from chunkcache.retrieval.splitter import Splitter
from chunkcache.service.given import GivenDocuments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chunkcache.chunk import Chunk
    from chunkcache.config import Settings
    from chunkcache.filters import Comparison, Compound, Membership
    from chunkcache.ranking import Ranking
    from chunkcache.retrieval.catalog import Catalog

PUBLIC = "public"
DEFAULT = "default"


class Library:
    """The catalog at `settings.home` and what reads and searches it. Thread-safe.

    Its parts are made on first use.

    Args:
        reads_only: the home cannot be written: nothing in it is tried to be.
    """

    def __init__(self, settings: Settings, *, reads_only: bool = False) -> None:
        self.settings = settings
        self._reads_only = reads_only
        self.metrics = Metrics()
        self._closed = False
        self._lock = threading.RLock()  # guards first use of the lazy parts
        self._catalog_lock = threading.Lock()  # of the catalog; taken after all others
        # of the embedder, which takes seconds, and of what has it; taken before the other lock
        self._embedder_lock = threading.Lock()

    # ------------------------------------------------------------ lazy parts

    @cached_property
    def _catalog(self) -> Catalog:
        return open_catalog(self.settings, Damage(self.metrics.catalog_damaged))

    @property
    def catalog(self) -> Catalog:
        """Documents and chunks on disk.

        Raises:
            ShuttingDown: this is closed, and nothing had opened it before.
        """
        opened: Catalog | None = self.__dict__.get("_catalog")
        if opened is not None:
            return opened
        with self._catalog_lock:
            if self._closed:
                raise ShuttingDown("this ChunkCache is closed")
            return self._catalog

    def _close_catalog(self) -> None:
        """For good: `_closed` is set."""
        with self._catalog_lock:
            if "_catalog" in self.__dict__:
                self._catalog.close()

    @cached_property
    def _embedder(self) -> Embedder:
        retrieval = self.settings.retrieval
        return open_embedder(
            retrieval.embedder,
            query_prompt=retrieval.query_prompt,
            passage_prompt=retrieval.passage_prompt,
            cache=self.settings.cache,
        )

    @cached_property
    def _splitter(self) -> Splitter:
        retrieval = self.settings.retrieval
        tokenizer = load_tokenizer(self.settings)
        return Splitter(tokenizer, retrieval.chunk_tokens, retrieval.overlap_tokens)

    @cached_property
    def _given(self) -> GivenDocuments:
        return GivenDocuments(self._splitter)

    @cached_property
    def _ingestor(self) -> Ingestor:
        embedder = self._embedder
        with self._lock:
            return Ingestor(self.catalog, self._splitter, embedder, self.settings.retrieval)

    @cached_property
    def _retriever(self) -> Retriever:
        embedder = self._embedder
        with self._lock:
            catalog, splitter = self.catalog, self._splitter
        return Retriever(
            catalog, embedder, self.settings.home / INDEX_FOLDER, self.settings.retrieval, splitter,
            saves=not self._reads_only,
        )  # fmt: skip

    @cached_property
    def _matcher(self) -> PassageMatcher:
        retrieval = self.settings.retrieval
        return PassageMatcher(self.catalog, retrieval.match_capacity_bytes, retrieval.chunk_tokens)

    @property
    def embedder_id(self) -> str:
        """The name clients give for embeddings."""
        return self.settings.retrieval.embedder.removeprefix("embedded:").rpartition("/")[2]

    # ------------------------------------------------------------ documents

    def ingest(
        self,
        paths: Sequence[Path],
        *,
        tenant: str = PUBLIC,
        collection: str = DEFAULT,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> IngestReport:
        """Read files and folders into the catalog; unchanged documents cost a hash each.

        `on_progress(done, total, name)` is called per file. Unreadable files are skipped and listed
        in the report, never fatal.
        """
        with self._embedder_lock:
            ingestor = self._ingestor
        return ingestor.ingest_paths(
            paths, tenant=tenant, collection=collection, on_progress=on_progress
        )

    def ingest_bytes(
        self,
        name: str,
        data: bytes,
        *,
        tenant: str = PUBLIC,
        collection: str = DEFAULT,
        attributes: dict[str, str | float | bool] | None = None,
        upload_id: str = "",
    ) -> DocumentInfo:
        """Read one uploaded file; a document of the same `upload_id`, or else name, is replaced.

        Raises:
            InvalidRequest: it is unreadable, with the reason.
        """
        with self._embedder_lock:
            ingestor = self._ingestor
        return ingestor.ingest_bytes(
            name, data, tenant=tenant, collection=collection, attributes=attributes,
            upload_id=upload_id,
        )  # fmt: skip

    def ingest_texts(
        self,
        documents: Sequence[GivenDocument],
        *,
        tenant: str = PUBLIC,
        collection: str = DEFAULT,
    ) -> IngestReport:
        """Take texts as documents; one without an id is known by its content."""
        with self._embedder_lock:
            ingestor = self._ingestor
        return ingestor.ingest_texts(documents, tenant=tenant, collection=collection)

    def _refresh(self, tenant: str, collection: str) -> None:
        """Bring what another tokenizer, chunk size or embedder left up to date."""
        with self._embedder_lock:
            ingestor = self._ingestor
        ingestor.refresh(tenant=tenant, collection=collection)

    def documents(self, *, tenant: str = PUBLIC, collection: str = DEFAULT) -> list[DocumentInfo]:
        """Documents in a collection, by title."""
        return self.catalog.documents(tenant, collection)

    def document_text(
        self, document_id: str, *, tenant: str = PUBLIC, collection: str = DEFAULT
    ) -> tuple[DocumentInfo, str]:
        """A document and its extracted text, in which citations' offsets count characters.

        Raises:
            NotFound: no such document or collection.
            CorruptRecord: the text is damaged.
        """
        info = self.catalog.document_info(tenant, collection, document_id)
        stored = self.catalog.document(tenant, collection, document_id)
        if info is None or stored is None:
            raise NotFound(f"document {document_id!r}: there is none of that id", param="document")
        try:
            stored.verify()
        except CorruptRecord as error:
            self.catalog.damage.note_text(error)
            raise
        return info, stored.document.text

    def former_passage(
        self, document_id: str, digest: str, *, tenant: str = PUBLIC, collection: str = DEFAULT
    ) -> str | None:
        """A passage of that `passage_digest` that the document has, elsewhere, or once had.

        None: it has none, or no longer (`server.link_lifetime_s`).

        Raises:
            NotFound: no such collection.
        """
        for chunk in self.catalog.entries.of_document(tenant, collection, document_id):
            if passage_digest(chunk.text) == digest:
                return chunk.text
        return self.catalog.former_passage(tenant, collection, document_id, digest)

    def remove(self, document_id: str, *, tenant: str = PUBLIC, collection: str = DEFAULT) -> bool:
        """Remove a document; its chunks are unreachable at once. False: it was not there."""
        return self.catalog.remove_document(document_id, tenant, collection)

    def create_collection(
        self,
        name: str,
        *,
        tenant: str = PUBLIC,
        metadata: dict[str, str] | None = None,
        expires_after_days: int | None = None,
    ) -> CollectionInfo:
        """A new, empty collection (a vector store, over HTTP)."""
        return self.catalog.create_collection(
            tenant, name, metadata=metadata, expires_after_days=expires_after_days
        )

    def change_collection(
        self,
        collection_id: str,
        *,
        tenant: str = PUBLIC,
        name: str,
        metadata: dict[str, str],
        expires_after_days: int | None,
    ) -> CollectionInfo:
        """Give a collection another name, metadata and expiry; an expired one lives again.

        Raises:
            NotFound: the tenant has none of that id.
        """
        return self.catalog.change_collection(
            tenant, collection_id,
            name=name, metadata=metadata, expires_after_days=expires_after_days,
        )  # fmt: skip

    def set_attributes(
        self,
        document_id: str,
        attributes: dict[str, str | float | bool],
        *,
        tenant: str = PUBLIC,
        collection: str = DEFAULT,
    ) -> None:
        """Replace a document's attributes; nothing happens when it is gone."""
        self.catalog.set_attributes(tenant, collection, document_id, attributes)

    def collections(self, *, tenant: str = PUBLIC) -> list[CollectionInfo]:
        """The tenant's collections."""
        return self.catalog.collections(tenant)

    def collection(self, collection_id: str, *, tenant: str = PUBLIC) -> CollectionInfo:
        """One collection.

        Raises:
            NotFound: the tenant has none of that id.
        """
        return self.catalog.collection(tenant, collection_id)

    def delete_collection(self, collection_id: str, *, tenant: str = PUBLIC) -> bool:
        """Delete a collection and its documents. False: it was not there."""
        return self.catalog.delete_collection(tenant, collection_id)

    def search(
        self,
        query: str,
        *,
        top_k: int = 4,
        tenant: str = PUBLIC,
        collection: str = DEFAULT,
        filters: Comparison | Membership | Compound | None = None,
        ranking: Ranking | None = None,
    ) -> list[Passage]:
        """The best passages for a query, best first; only of documents that pass the filters.

        `ranking` None: as the settings say.
        """
        found = self._search(
            query, top_k, tenant=tenant, collection=collection, filters=filters, ranking=ranking
        )
        return [
            Passage(
                chunk_id=c.chunk_id, document_id=c.document_id, title=c.title, url=c.url,
                text=c.text, score=c.score, start_char=c.start_char, end_char=c.end_char,
                headings=list(c.headings),
            )
            for c in found
        ]  # fmt: skip

    def _prepare(self, tenant: str, collection: str) -> None:
        """Bring a collection's indexes level with the catalog before somebody searches it.

        Raises:
            NotFound: the tenant has no such collection.
        """
        with self._embedder_lock:
            retriever = self._retriever
        retriever.prepare(tenant, collection)

    def _prepare_tenant(self, tenant: str) -> None:
        """The same for where the tenant's passages stand in messages, if those are looked for."""
        if self.settings.retrieval.match_messages:
            with self._lock:
                matcher = self._matcher
            matcher.prepare(tenant)

    def _search(
        self,
        query: str,
        top_k: int,
        *,
        tenant: str,
        collection: str,
        also: Sequence[str] = (),
        filters: Comparison | Membership | Compound | None = None,
        ranking: Ranking | None = None,
    ) -> list[Chunk]:
        searched = [self._check_alive(tenant, name) for name in (collection, *also)]
        with self._embedder_lock:
            retriever = self._retriever
        found = retriever.search(
            query, top_k=top_k, tenant=tenant, collection=collection, also=also,
            passes=filters.matches if filters else None, ranking=ranking,
        )  # fmt: skip
        for info in searched:
            if info.expires_after_days is not None and not self._reads_only:
                self.catalog.note_use(tenant, info.id)
        return found

    def _check_alive(self, tenant: str, collection: str) -> CollectionInfo:
        info = self.catalog.collection(tenant, collection)
        if info.expires_at is not None and info.expires_at <= time.time():
            raise InvalidRequest(
                f"vector_store_id: '{collection}' has expired: nobody used it for the days of its "
                "expires_after. Its documents are kept. Hint: update the vector store, with "
                "another expires_after or null, to use it again.",
                param="vector_store_id",
            )
        return info

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Unit vectors and the number of tokens read."""
        with self._embedder_lock:
            embedder = self._embedder
        return embedder.embed(texts).tolist(), embedder.count_tokens(texts)
