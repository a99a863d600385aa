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
from chunkcache.retrieval.fusion import Rankings, fused, mode_of
from chunkcache.retrieval.index_folder import index_folder, remove_index_folder
from chunkcache.retrieval.refresh import refresh
from chunkcache.retrieval.ties import StableOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from chunkcache.chunk import Chunk
    from chunkcache.config import RetrievalSettings
    from chunkcache.ranking import Ranking
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.embedder import Embedder
    from chunkcache.retrieval.fusion import Mode
    from chunkcache.retrieval.splitter import Splitter

OPEN_COLLECTIONS = 64  # indexes held in memory; the least recently searched is let go
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
        saves: False: index files are read, and neither written nor removed.
    """

    def __init__(
        self,
        catalog: Catalog,
        embedder: Embedder,
        folder: Path,
        settings: RetrievalSettings,
        splitter: Splitter | None = None,
        *,
        saves: bool = True,
    ) -> None:
        self._catalog = catalog
        self._embedder = embedder
        self._root = folder
        self._settings = settings
        self._splitter = splitter
        self._lock = threading.Lock()  # guards the next line
        self._open: OrderedDict[tuple[str, str], CollectionIndex] = OrderedDict()
        self._saves = saves
        if saves:
            self._sweep()

    def search(
        self,
        query: str,
        *,
        top_k: int,
        tenant: str = PUBLIC_TENANT,
        collection: str = DEFAULT_COLLECTION,
        also: Sequence[str] = (),
        passes: Callable[[dict[str, str | float | bool]], bool] | None = None,
        ranking: Ranking | None = None,
    ) -> list[Chunk]:
        """The best chunks, best first, each with its score; fewer when there are fewer.

        With `also`, of those collections too, ranked as if they were one; their chunks name the
        collection they are in. With `passes`, only of documents whose attributes do.

        Scores compare within one result only: reciprocal ranks (hybrid), cosines (vector) or BM25
        (lexical), as `settings.mode` or `ranking` says. Equal ones are ordered by document id and
        place in the document. Chunks with the same text may all be returned.

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
        indexes = {name: self._index(tenant, name) for name in dict.fromkeys((collection, *also))}
        mode = mode_of(self._settings.mode, ranking)
        vector = np.empty(0, np.float32)
        if mode != "lexical":
            vector = self._embedder.embed_query(query)
        depth = max(_CANDIDATES, 2 * top_k)
        chunks: list[Chunk] = []
        gone: set[int] = set()  # deleted meanwhile, or damaged
        for _ in range(_ATTEMPTS):
            rankings, places = [], dict[int, str]()
            for name, index in indexes.items():
                with index.lock:
                    self._update(index, tenant, name)
                    among = self._catalog.entries.passing(tenant, name, passes) if passes else None
                    one = _rankings(index, query, vector, depth, mode, among, len(indexes) > 1)
                rankings.append(one)
                places |= dict.fromkeys((e for e, _ in (*one.by_vector, *one.by_words)), name)
            ranked = fused(rankings, depth, mode, ranking, self._order(list(indexes), places))
            hits = [(entry, score) for entry, score in ranked if entry not in gone][:top_k]
            found: dict[int, Chunk] = {}
            for name in indexes:
                here = [entry for entry, _ in hits if places[entry] == name]
                held = self._catalog.entries.chunks(tenant, name, here)
                elsewhere = "" if name == collection else name
                found |= {e: replace(chunk, collection=elsewhere) for e, chunk in held.items()}
            chunks = [replace(found[e], score=score) for e, score in hits if e in found]
            if len(chunks) == len(hits):
                break
            gone |= {entry for entry, _ in hits} - found.keys()
        return chunks

    def _order(self, names: Sequence[str], collection_of: Mapping[int, str]) -> StableOrder:
        """By document, by place in it, and by the order in which the collections are named."""

        def read(entries: Sequence[int]) -> dict[int, tuple[str, int, int]]:
            places = self._catalog.entries.places(entries)
            return {e: (*place, names.index(collection_of[e])) for e, place in places.items()}

        return StableOrder(read)

    def prepare(self, tenant: str, collection: str) -> None:
        """Bring a collection's indexes level with the catalog, as the next search would.

        Nothing happens where it is not in memory and no place is free: no other is let go for it.
        Searches of the collection wait meanwhile. Cost: see `search`; loads or builds what is not
        in memory.

        Raises:
            NotFound: the tenant has no such collection.
        """
        self._catalog.generation(tenant, collection)
        with self._lock:
            index = self._open.get((tenant, collection))
            if index is None:
                self._forget_gone()
                if len(self._open) >= OPEN_COLLECTIONS:
                    return
                index = self._opened(tenant, collection)
                self._open.move_to_end((tenant, collection), last=False)  # nobody searched it yet
        with index.lock:
            self._update(index, tenant, collection)

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
            index = self._open.get((tenant, collection)) or self._opened(tenant, collection)
            self._open.move_to_end((tenant, collection))
            while len(self._open) > OPEN_COLLECTIONS:
                self._open.popitem(last=False)
        return index

    def _opened(self, tenant: str, collection: str) -> CollectionIndex:
        index = self._open[tenant, collection] = CollectionIndex(
            self._catalog, tenant, collection, self._embedder,
            index_folder(self._root, tenant, collection), self._settings.index, saves=self._saves,
        )  # fmt: skip
        return index

    def _forget_gone(self) -> None:
        """Let go of collections that were deleted, if their places are needed."""
        if len(self._open) >= OPEN_COLLECTIONS:
            for one in self._open.keys() - self._catalog.entries.generations().keys():
                del self._open[one]

    def _sweep(self) -> None:
        """Remove index files of collections that are gone, as after a kill during a deletion."""
        known = {folder.name for folder in self._catalog.index_folders()}
        for folder in self._root.glob("*"):
            if folder.name not in known:
                remove_index_folder(folder)


def _rankings(
    index: CollectionIndex, query: str, vector: np.ndarray, depth: int, mode: Mode,
    among: frozenset[int] | None, is_one_of_several: bool,
) -> Rankings:  # fmt: skip
    by_vector = [] if mode == "lexical" else index.by_vector(vector, depth, among)
    if mode == "vector":
        return Rankings(by_vector, [])
    by_words = index.by_words(query, depth, among)
    entries = [entry for entry, _ in by_words]
    counts = index.count_words(query, entries) if is_one_of_several else None
    return Rankings(by_vector, by_words, counts)
