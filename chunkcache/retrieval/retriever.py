"""Question → the best chunks of a collection, with scores."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.retrieval.collection_index import CollectionIndex
from chunkcache.retrieval.documents import DEFAULT_COLLECTION, PUBLIC_TENANT, valid_unicode
from chunkcache.retrieval.index_folder import index_folder, remove_index_folder
from chunkcache.retrieval.refresh import refresh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chunkcache.chunk import Chunk
    from chunkcache.config import RetrievalSettings
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.embedder import Embedder
    from chunkcache.retrieval.splitter import Splitter

_OPEN_COLLECTIONS = 64  # indexes held in memory; the least recently searched is let go
_CANDIDATES = 50  # per ranking, at least, so that fusion has something to fuse
_ATTEMPTS = 4  # documents may change between the index and the catalog


class Retriever:
    """Searches collections. Thread-safe; searches in one collection take turns.

    What a search returns is what the catalog holds at that moment: a removed or edited document's
    chunks never come back, and new ones are found by the next search.

    Args:
        folder: where index files are kept; one folder per collection below it.
        splitter: when given, documents that another tokenizer or chunk size split are split again
            before they are searched. Needed wherever the chunks' token ids are used.
    """

    def __init__(
        self,
        catalog: Catalog,
        embedder: Embedder,
        folder: Path,
        settings: RetrievalSettings,
        splitter: Splitter | None = None,
    ) -> None:
        self._catalog = catalog
        self._embedder = embedder
        self._root = folder
        self._settings = settings
        self._splitter = splitter
        self._lock = threading.Lock()  # guards the next line
        self._open: OrderedDict[tuple[str, str], CollectionIndex] = OrderedDict()
        self._sweep()

    def search(
        self,
        query: str,
        *,
        top_k: int,
        tenant: str = PUBLIC_TENANT,
        collection: str = DEFAULT_COLLECTION,
        passes: Callable[[dict[str, str | float | bool]], bool] | None = None,
    ) -> list[Chunk]:
        """The best chunks, best first, each with its score; fewer when there are fewer.

        With `passes`, only of documents whose attributes do.

        Scores compare within one result only: reciprocal ranks (hybrid), cosines (vector) or BM25
        (lexical), as `settings.mode` says. Chunks with the same text may all be returned.

        Cost: embedding the query, a scan or graph search, and before that bringing the index level
        with the catalog if it changed. After a change of tokenizer, chunk size or embedder the
        first search of a collection pays for all of it; `Ingestor.refresh` does so ahead.

        Raises:
            InvalidRequest: the query is blank or not valid Unicode, or `top_k` is less than 1.
            NotFound: the tenant has no such collection.
        """
        if top_k < 1:
            raise InvalidRequest.of("top_k", top_k, "at least 1", "ask for one passage or more")
        if not valid_unicode("query", query).strip():
            raise InvalidRequest.of("query", query, "a text with words", "ask something")
        index = self._index(tenant, collection)
        vector = np.empty(0, np.float32)
        if self._settings.mode != "lexical":
            vector = self._embedder.embed_query(query)
        chunks: list[Chunk] = []
        for _ in range(_ATTEMPTS):
            with index.lock:
                self._update(index, tenant, collection)
                depth = max(_CANDIDATES, 2 * top_k)
                among = (
                    self._catalog.entries.passing(tenant, collection, passes) if passes else None
                )
                hits = index.search(query, vector, depth, self._settings.mode, among)[:top_k]
            found = self._catalog.entries.chunks(tenant, collection, [entry for entry, _ in hits])
            chunks = [replace(found[e], score=score) for e, score in hits if e in found]
            if len(chunks) == len(hits):
                break
        return chunks

    def _update(self, index: CollectionIndex, tenant: str, collection: str) -> None:
        try:
            generation = self._catalog.generation(tenant, collection)
            if index.generation == generation:
                return
            refresh(self._catalog, self._splitter, self._embedder, tenant, collection)
            index.update()
        except NotFound:
            with self._lock:
                self._open.pop((tenant, collection), None)
            raise

    def _index(self, tenant: str, collection: str) -> CollectionIndex:
        self._catalog.generation(tenant, collection)  # an unknown name must not become a folder
        with self._lock:
            index = self._open.get((tenant, collection))
            if index is None:
                index = CollectionIndex(
                    self._catalog, tenant, collection, self._embedder,
                    index_folder(self._root, tenant, collection), self._settings.index,
                )  # fmt: skip
                self._open[tenant, collection] = index
            self._open.move_to_end((tenant, collection))
            while len(self._open) > _OPEN_COLLECTIONS:
                self._open.popitem(last=False)
        return index

    def _sweep(self) -> None:
        """Remove index files of collections that are gone, as after a kill during a deletion."""
        known = {folder.name for folder in self._catalog.index_folders()}
        for folder in self._root.glob("*"):
            if folder.name not in known:
                remove_index_folder(folder)
