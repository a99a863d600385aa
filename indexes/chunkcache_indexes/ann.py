"""`HnswIndex`: approximate neighbours through a navigable graph (faiss).

Source: Malkov and Yashunin, arXiv 1603.09320; faiss' `IndexHNSWFlat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import faiss
import numpy as np

from chunkcache_indexes.base import (
    NO_ID,
    Hits,
    check_k,
    check_new,
    checked_ids,
    checked_vectors,
)
from chunkcache_indexes.flat import exact_search
from chunkcache_indexes.index_file import read_index_file, write_index_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from chunkcache_indexes.base import Ids, Vectors


class HnswIndex:
    """Graph search: a third of a flat scan's time at 20,000 vectors, and growing more slowly.

    Memory: 4 · dim for the vector, about 8 · links + 8 for the graph, 9 for id and mark: 1.8 KB
    per vector of 384 numbers with 32 links. Building costs some tenths of a millisecond of one core
    per vector, growing with `ef_build`.

    Which neighbours are missed depends on the order of additions, and with more than one thread on
    chance: each vector is linked to those that came before it, and removals stay in the graph. So
    the same vectors added in another order, or in other pieces, can give other neighbours.
    What does not depend on it: how many there are, their scores, which are exact inner products,
    and recall as a whole. `FlatIndex` gives the same whatever the order.

    faiss cannot take a vector out of the graph. `remove` marks it: it still guides the search and
    is never returned. When more than `max_dead_share` of the vectors are marked, the graph is built
    anew from the living ones, inside that call.

    Args:
        dim: numbers in a vector.
        links: neighbours kept per vector (M in the paper). More: better recall, more memory.
        ef_build: candidates looked at when a vector is placed. More: better graph, slower building.
        ef_search: candidates looked at in a search, at least k. More: better recall, slower.
        max_dead_share: share of marked vectors that triggers rebuilding.

    Raises:
        ValueError: a parameter is out of range.
    """

    kind = "hnsw"

    def __init__(
        self,
        dim: int,
        *,
        links: int = 32,
        ef_build: int = 200,
        ef_search: int = 128,
        max_dead_share: float = 0.2,
    ) -> None:
        for name, value in {"dim": dim, "ef_build": ef_build, "ef_search": ef_search}.items():
            if value < 1:
                raise ValueError(f"{name}: got {value}, must be at least 1")
        if not 2 <= links <= 512:
            raise ValueError(f"links: got {links}, must be between 2 and 512")
        if not 0.0 <= max_dead_share < 1.0:
            raise ValueError(f"max_dead_share: got {max_dead_share}, must be in [0, 1)")
        self._dim = dim
        self._links, self._ef_build, self._ef_search = links, ef_build, ef_search
        self._max_dead_share = max_dead_share
        self._graph: Any = self._empty_graph()  # faiss' stubs lack much of it
        self._ids: Ids = np.empty(0, np.int64)  # by place in the graph
        self._alive: npt.NDArray[np.bool_] = np.empty(0, np.bool_)

    @property
    def dim(self) -> int:
        """See `VectorIndex`."""
        return self._dim

    @property
    def ids(self) -> Ids:
        """See `VectorIndex`."""
        return np.sort(self._ids[self._alive])

    @property
    def num_dead(self) -> int:
        """Vectors that are marked as removed and still in the graph."""
        return len(self._ids) - len(self)

    def __len__(self) -> int:
        return int(self._alive.sum())

    def add(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """See `VectorIndex`. An id that was removed may come back, with another vector."""
        new_ids, new_vectors = check_new(ids, vectors, self._ids[self._alive], self._dim)
        if len(new_ids):
            self._graph.add(new_vectors)
            self._ids = np.concatenate([self._ids, new_ids])
            self._alive = np.concatenate([self._alive, np.ones(len(new_ids), np.bool_)])

    def remove(self, ids: npt.ArrayLike) -> int:
        """See `VectorIndex`. Cost: a mark each, and at times rebuilding the graph."""
        hit = self._alive & np.isin(self._ids, checked_ids(ids))
        self._alive = self._alive & ~hit
        if self.num_dead > self._max_dead_share * len(self._ids):
            self._rebuild()
        return int(hit.sum())

    def search(self, queries: npt.ArrayLike, k: int) -> Hits:
        """See `VectorIndex`. Approximate, but never fewer hits than there are.

        A graph search can run dry among marked vectors; such a query is answered by a full scan.
        """
        check_k(k)
        asked = checked_vectors(queries, self._dim, "queries")
        taken = min(k, len(self))
        if taken == 0 or len(asked) == 0:
            return exact_search(self._ids[:0], [], asked, k)
        scores, places = self._graph.search(asked, k, params=self._search_parameters(k))
        short = np.flatnonzero((places[:, :taken] < 0).any(axis=1))
        found = np.where(places < 0, NO_ID, self._ids[places])
        scores = np.where(places < 0, np.float32(-np.inf), scores)
        if len(short):
            living = self._vectors()[self._alive]
            exact = exact_search(self._ids[self._alive], [living], asked[short], k)
            found[short], scores[short] = exact
        return Hits(found, scores)

    def save(self, path: Path) -> None:
        """See `VectorIndex`."""
        meta = {
            "dim": self._dim, "links": self._links, "ef_build": self._ef_build,
            "ef_search": self._ef_search, "max_dead_share": self._max_dead_share,
        }  # fmt: skip
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": self._ids,
            "alive": self._alive.astype(np.uint8),
            "graph": faiss.serialize_index(self._graph),
        }
        write_index_file(path, self.kind, meta, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """See `VectorIndex`."""
        meta, arrays = read_index_file(path, cls.kind)
        index = cls(**meta)
        index._graph = faiss.deserialize_index(arrays["graph"])
        index._ids, index._alive = arrays["ids"], arrays["alive"].astype(np.bool_)
        return index

    def _empty_graph(self) -> faiss.IndexHNSWFlat:
        graph = faiss.IndexHNSWFlat(self._dim, self._links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = self._ef_build
        return graph

    def _search_parameters(self, k: int) -> Any:
        make: Any = faiss.SearchParametersHNSW  # type: ignore[attr-defined]  # not in the stubs
        ef_search = max(self._ef_search, k)
        if not self.num_dead:
            return make(efSearch=ef_search)
        dead = np.flatnonzero(~self._alive)
        living = faiss.IDSelectorNot(faiss.IDSelectorBatch(dead))
        # marked vectors take places among the candidates, so there are more of those
        return make(efSearch=ef_search + min(len(dead), ef_search), sel=living)

    def _vectors(self) -> Vectors:
        """All vectors by place, dead ones too: a copy."""
        vectors: Vectors = self._graph.reconstruct_n(0, self._graph.ntotal)
        return vectors.reshape(-1, self._dim)

    def _rebuild(self) -> None:
        living = self._vectors()[self._alive]
        self._ids = self._ids[self._alive]
        self._alive = np.ones(len(self._ids), np.bool_)
        self._graph = self._empty_graph()
        if len(living):
            self._graph.add(living)
