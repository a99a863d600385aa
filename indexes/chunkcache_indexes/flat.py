"""`FlatIndex`: every vector compared. Exact; the twin that other indexes are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from chunkcache_indexes.base import (
    NO_ID,
    Hits,
    best_places,
    check_k,
    check_new,
    checked_ids,
    checked_vectors,
)
from chunkcache_indexes.index_file import Stacked, read_index_file, write_index_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from chunkcache_indexes.base import Ids, Vectors

_SCORES_AT_ONCE = 1 << 24  # numbers in the score matrix, 64 MiB
_ROWS_AT_ONCE = 4096  # copied or written
_MOST_DEAD_SHARE = 0.2


class FlatIndex:
    """Exact inner products by one matrix product, or two.

    Memory: 4 · dim + 9 bytes per vector; of those that came from a file, or went into one, 9, and
    the file mapped. A search reads all of them: about 0.9 ms for 20,000 vectors of 384 numbers on
    one core. Adding copies what no file has when its room is full, with an eighth of it as room for
    more. Removing marks; at more than a fifth marked, all are copied. Equal scores are ordered by
    id, so results do not depend on the order of additions.
    """

    kind = "flat"

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._ids: Ids = np.empty(0, np.int64)  # those of `_filed`, then those of `_room`
        self._alive: npt.NDArray[np.bool_] = np.empty(0, np.bool_)  # not removed
        self._filed: Vectors = np.empty((0, dim), np.float32)  # in a file; never changed
        self._room: Vectors = np.empty((0, dim), np.float32)  # the first vectors of it are held

    @property
    def dim(self) -> int:
        """See `VectorIndex`."""
        return self._dim

    @property
    def ids(self) -> Ids:
        """See `VectorIndex`."""
        return np.sort(self._ids[self._alive])

    def __len__(self) -> int:
        return int(self._alive.sum())

    def add(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """See `VectorIndex`."""
        new_ids, new_vectors = check_new(ids, vectors, self._ids[self._alive], self._dim)
        if not len(new_ids):
            return
        held = len(self._ids) - len(self._filed)
        needed = held + len(new_ids)
        if needed > len(self._room):
            self._room.resize((needed + needed // 8, self._dim), refcheck=False)  # in place
        self._room[held:needed] = new_vectors
        self._ids = np.concatenate([self._ids, new_ids])
        self._alive = np.concatenate([self._alive, np.ones(len(new_ids), np.bool_)])

    def remove(self, ids: npt.ArrayLike) -> int:
        """See `VectorIndex`."""
        hit = self._alive & np.isin(self._ids, checked_ids(ids))
        self._alive = self._alive & ~hit
        if len(self._ids) - len(self) > _MOST_DEAD_SHARE * len(self._ids):
            self._purge()
        return int(hit.sum())

    def search(self, queries: npt.ArrayLike, k: int) -> Hits:
        """See `VectorIndex`."""
        check_k(k)
        asked = checked_vectors(queries, self._dim, "queries")
        return exact_search(self._ids, self._vectors, asked, k, alive=self._alive)

    def save(self, path: Path) -> None:
        """See `VectorIndex`. From then on the vectors are read from the file, and not held."""
        ids = self._ids[self._alive]
        shape = (len(ids), self._dim)
        vectors = Stacked("float32", shape, self._living())
        arrays: dict[str, npt.NDArray[Any] | Stacked] = {"ids": ids, "vectors": vectors}
        self._take(write_index_file(path, self.kind, {"dim": self._dim}, arrays))

    @classmethod
    def load(cls, path: Path) -> Self:
        """See `VectorIndex`."""
        meta, arrays = read_index_file(path, cls.kind)
        index = cls(meta["dim"])
        index._take(arrays)
        return index

    def _take(self, filed: Mapping[str, npt.NDArray[Any]]) -> None:
        """Hold what a file has, and nothing else."""
        self._ids, self._filed = filed["ids"], filed["vectors"]
        self._alive = np.ones(len(self._ids), np.bool_)
        self._room = np.empty((0, self._dim), np.float32)

    @property
    def _vectors(self) -> list[Vectors]:
        parts = [self._filed, self._room[: len(self._ids) - len(self._filed)]]
        return [part for part in parts if len(part)]

    def _purge(self) -> None:
        """Forget the vectors that were removed."""
        room = np.empty((len(self), self._dim), np.float32)
        held = 0
        for piece in self._living():
            room[held : held + len(piece)] = piece
            held += len(piece)
        self._filed, self._room = room[:0], room
        self._ids = self._ids[self._alive]
        self._alive = np.ones(len(self._ids), np.bool_)

    def _living(self) -> Iterator[Vectors]:
        """The vectors that were not removed, in pieces."""
        first = 0
        for part in self._vectors:
            for start in range(0, len(part), _ROWS_AT_ONCE):
                piece = part[start : start + _ROWS_AT_ONCE]
                yield piece[self._alive[first + start : first + start + len(piece)]]
            first += len(part)


def exact_search(
    ids: Ids,
    vectors: Sequence[Vectors],
    queries: Vectors,
    k: int,
    *,
    alive: npt.NDArray[np.bool_] | None = None,
) -> Hits:
    """The `k` best for each query by brute force; equal scores in order of id.

    Args:
        ids: `[n]`, of the vectors in all parts.
        alive: `[n]`: whether a vector may be found; None for all of them.
    """
    found_ids = np.full((len(queries), k), NO_ID, np.int64)
    found_scores = np.full((len(queries), k), -np.inf, np.float32)
    living = None if alive is None or alive.all() else np.flatnonzero(alive)
    if living is not None:
        ids = ids[living]
    taken = min(k, len(ids))
    if taken == 0:
        return Hits(found_ids, found_scores)
    step = max(1, _SCORES_AT_ONCE // sum(map(len, vectors)))
    for start in range(0, len(queries), step):
        asked = queries[start : start + step]
        block = np.concatenate([asked @ part.T for part in vectors], axis=1)
        for row, scores in enumerate(block if living is None else block[:, living], start):
            best = best_places(ids, scores, taken)
            found_ids[row, :taken], found_scores[row, :taken] = ids[best], scores[best]
    return Hits(found_ids, found_scores)
