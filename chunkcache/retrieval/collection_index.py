"""The indexes of one collection: in memory, kept level with the catalog, saved now and then."""

from __future__ import annotations

import threading
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog

from chunkcache.errors import NotFound
from chunkcache.retrieval.documents import SEARCHED_TEXT_VERSION, vector_space
from chunkcache.retrieval.index_folder import (
    INDEX_SUFFIX,
    remove_index_folder,
    sweep_partial_files,
)
from chunkcache.retrieval.ties import to_the_end_of_a_tie
from chunkcache_indexes.ann import HnswIndex
from chunkcache_indexes.flat import FlatIndex
from chunkcache_indexes.index_file import IndexFileError
from chunkcache_indexes.lexical import WORDS_VERSION, LexicalIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Literal

    import numpy.typing as npt

    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.embedder import Embedder
    from chunkcache_indexes.base import VectorIndex
    from chunkcache_indexes.lexical import WordCounts

_Index = TypeVar("_Index")
log = structlog.get_logger(__name__)

_BATCH_ENTRIES = 4096  # texts or vectors in memory twice: as they are stored, and in the index
_UNSAVED_ENTRIES = 128  # changes of an index that are not worth a save; or a tenth of it


class CollectionIndex:
    """Vector and lexical index of one collection. The holder of `lock` may call its methods.

    Index files name in their file names what they were made with, and hold the entries they know.
    They are brought up to date by comparing those with the catalog's, whichever of the two is
    ahead; a file that is damaged or missing is made anew from the catalog. Unless it `saves`,
    all of that is in memory alone.
    """

    def __init__(
        self,
        catalog: Catalog,
        tenant: str,
        collection: str,
        embedder: Embedder,
        folder: Path,
        kind: Literal["flat", "hnsw"],
        *,
        saves: bool = True,
    ) -> None:
        self.lock = threading.Lock()
        self.generation = -1  # of the catalog, as of the last update
        self._catalog = catalog
        self._tenant, self._collection = tenant, collection
        self._space = vector_space(embedder)
        self._folder = folder
        self._saves = saves
        self._unsaved: dict[Path, int] = {}
        self._vector_path = folder / f"vectors-{kind}-{_short(self._space)}{INDEX_SUFFIX}"
        words = _short(f"{WORDS_VERSION} {SEARCHED_TEXT_VERSION}")
        self._lexical_path = folder / f"lexical-{words}{INDEX_SUFFIX}"
        self._vector_class: type[FlatIndex] | type[HnswIndex]
        self._vector_class = HnswIndex if kind == "hnsw" else FlatIndex
        self._vectors: VectorIndex = self._vector_class(embedder.dim)
        self._words = LexicalIndex()

    def update(self) -> None:
        """Take in what the catalog has, drop what it has no more; save if much changed.

        Vectors are saved before words are looked at: from then on they are in their file, and not
        in memory beside what building the other takes. Whoever is killed, or fails, in between
        leaves two files that are whole, each with the entries it knows.

        Cost: a query when nothing changed; else one over all entries, the new vectors and texts,
        and for saving a pass over the index files.

        Raises:
            NotFound: the collection was deleted.
        """
        if self.generation < 0:
            self._load()
        generation, entries = self._catalog.entries.all(self._tenant, self._collection)
        self._level(self._vectors, entries, self._add_vectors, self._vector_path)
        self._level(self._words, entries, self._add_words, self._lexical_path)
        self.generation = generation
        if self._saves and not len(entries):
            remove_index_folder(self._folder)

    def by_vector(
        self, vector: np.ndarray, depth: int, among: frozenset[int] | None = None
    ) -> list[tuple[int, float]]:
        """`depth` entries with their inner products, best first; only those `among`.

        More where the last of them ties with others, fewer where there are fewer.

        Cost: searches four times as deep each until enough is found or nothing is left.
        """

        def search(deep: int) -> list[tuple[int, float]]:
            found = self._vectors.search(vector[None], deep)
            return _pairs(found.ids[0], found.scores[0])

        return _first(search, depth, len(self._vectors), among)

    def by_words(
        self, query: str, depth: int, among: frozenset[int] | None = None
    ) -> list[tuple[int, float]]:
        """The same with BM25's scores, of entries that share a word with the query."""

        def search(deep: int) -> list[tuple[int, float]]:
            return _pairs(*self._words.search(query, deep))

        return _first(search, depth, len(self._words), among)

    def count_words(self, query: str, entries: Sequence[int]) -> WordCounts:
        """What a ranking of several collections by words needs of these entries."""
        return self._words.count(query, entries)

    def _level(
        self,
        index: VectorIndex | LexicalIndex,
        entries: npt.NDArray[np.int64],
        add: Callable[[npt.NDArray[np.int64]], int],
        path: Path,
    ) -> None:
        held = index.ids
        changed = index.remove(np.setdiff1d(held, entries, assume_unique=True))
        missing = np.sort(np.setdiff1d(entries, held, assume_unique=True))
        for start in range(0, len(missing), _BATCH_ENTRIES):
            changed += add(missing[start : start + _BATCH_ENTRIES])
        self._unsaved[path] = self._unsaved.get(path, 0) + changed
        is_much = self._unsaved[path] > max(_UNSAVED_ENTRIES, len(entries) // 10)
        if self._saves and len(entries) and is_much:
            self._save(index, path)

    def _add_vectors(self, batch: npt.NDArray[np.int64]) -> int:
        present, vectors = self._catalog.entries.read(batch, self._space)
        if len(present):
            self._vectors.add(present, vectors)
        return len(present)

    def _add_words(self, batch: npt.NDArray[np.int64]) -> int:
        texts = self._catalog.entries.searched_texts(self._tenant, self._collection, batch)
        self._words.add(list(texts), list(texts.values()))
        return len(texts)

    def _save(self, index: VectorIndex | LexicalIndex, path: Path) -> None:
        """Write a file. A failure costs work after the next start, and nothing else."""
        self._catalog.note_index_folder(self._tenant, self._collection, self._folder)
        try:
            index.save(path)
            for other in self._folder.glob(f"*{INDEX_SUFFIX}"):
                if other not in (self._vector_path, self._lexical_path):
                    other.unlink(missing_ok=True)  # of another embedder or kind
        except (IndexFileError, OSError) as error:
            log.warning("index_not_saved", folder=str(self._folder), reason=str(error))
        else:
            self._unsaved[path] = 0
        try:
            self._catalog.generation(self._tenant, self._collection)
        except NotFound:  # deleted while we wrote
            remove_index_folder(self._folder)
            raise

    def _load(self) -> None:
        """Take what lies on disk, as far as it is whole."""
        if not self._folder.is_dir():
            return
        if self._saves:
            self._catalog.note_index_folder(self._tenant, self._collection, self._folder)
            sweep_partial_files(self._folder)
        load: Callable[[Path], VectorIndex] = self._vector_class.load
        vectors = _loaded(load, self._vector_path)
        words = _loaded(LexicalIndex.load, self._lexical_path)
        if vectors is not None:
            self._vectors = vectors
        if words is not None:
            self._words = words


def _loaded(load: Callable[[Path], _Index], path: Path) -> _Index | None:
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except (IndexFileError, OSError) as error:
        log.warning("index_rebuilt", path=str(path), reason=str(error))
        return None


def _first(
    search: Callable[[int], list[tuple[int, float]]],
    depth: int,
    total: int,
    among: frozenset[int] | None,
) -> list[tuple[int, float]]:
    """The first `depth` hits of a ranking of at most `total`, of those `among`, and all that tie.

    `search` gives as many as it is asked for, where there are so many.
    """
    deep = depth + 1
    while True:
        hits = search(deep)
        found = hits if among is None else [hit for hit in hits if hit[0] in among]
        is_all = (
            len(hits) < deep or deep >= total or (among is not None and len(found) >= len(among))
        )
        first = to_the_end_of_a_tie(found, depth, is_all=is_all)
        if first is not None:
            return first
        deep = min(4 * deep, total)


def _pairs(ids: npt.NDArray[np.int64], scores: np.ndarray) -> list[tuple[int, float]]:
    return [(i, s) for i, s in zip(ids.tolist(), scores.tolist(), strict=True) if i >= 0]


def _short(name: str) -> str:
    return blake2b(name.encode(), digest_size=6).hexdigest()
