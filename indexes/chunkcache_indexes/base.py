"""What a vector index does, and the checks all of them share.

An index maps int64 ids, which the caller chooses, to float32 vectors. It does not know what the ids
stand for. Any number of threads may search at once; a change needs the index for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Ids = npt.NDArray[np.int64]
    Vectors = npt.NDArray[np.float32]

NO_ID = -1  # fills the places of a result beyond the last hit; its score is -inf


class Hits(NamedTuple):
    """Nearest vectors of n queries, best first."""

    ids: Ids  # [n, k], NO_ID where there are fewer than k vectors
    scores: Vectors  # [n, k], inner products; -inf beside NO_ID


class VectorIndex(Protocol):
    """Nearest neighbours by inner product, which is the cosine for unit vectors."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def ids(self) -> Ids:
        """The ids held, ascending; a copy."""
        ...

    def __len__(self) -> int:
        """Vectors held."""
        ...

    def add(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Add `vectors` `[n, dim]` under `ids` `[n]`.

        Raises:
            ValueError: an id is negative, repeated or held already, a shape is wrong, or a number
                is not finite. Nothing was added then.
        """
        ...

    def remove(self, ids: npt.ArrayLike) -> int:
        """Remove `ids` `[n]`; unknown ones are ignored. How many were there."""
        ...

    def search(self, queries: npt.ArrayLike, k: int) -> Hits:
        """The `k` best vectors for each of `queries` `[n, dim]`.

        Raises:
            ValueError: `k` is less than 1, or the queries have a wrong shape or are not finite.
        """
        ...

    def save(self, path: Path) -> None:
        """Write one file, atomically: readers see the old file or the whole new one.

        Raises:
            OSError: the file cannot be written; the old one is untouched.
        """
        ...

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            IndexFileError: it is truncated, damaged, of another version or of another kind.
        """
        ...


def checked_vectors(vectors: npt.ArrayLike, dim: int, name: str) -> Vectors:
    """`vectors` as contiguous float32 `[n, dim]`. Raises `ValueError` naming `name`."""
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"{name}: got shape {array.shape}, must be [n, {dim}]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got a number that is not finite")
    return array


def checked_ids(ids: npt.ArrayLike) -> Ids:
    """`ids` as int64 `[n]`. Raises `ValueError` for other shapes and types."""
    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"ids: got {array.dtype} of shape {array.shape}, must be integers [n]")
    return array.astype(np.int64)


def checked_new_ids(ids: npt.ArrayLike, held: Ids) -> Ids:
    """Ids to add: not negative, each once, none of them held. Raises `ValueError`."""
    array = checked_ids(ids)
    if (array < 0).any():
        raise ValueError(f"ids: got {array.min()}, must be at least 0")
    if len(np.unique(array)) != len(array):
        raise ValueError("ids: got an id more than once")
    known = np.intersect1d(array, held)
    if len(known):
        raise ValueError(f"ids: got {known[0]}, which is held already. Hint: remove it first")
    return array


def check_new(
    ids: npt.ArrayLike, vectors: npt.ArrayLike, held: Ids, dim: int
) -> tuple[Ids, Vectors]:
    """Both arguments of `VectorIndex.add`, checked. Raises `ValueError`."""
    new_ids = checked_new_ids(ids, held)
    new_vectors = checked_vectors(vectors, dim, "vectors")
    if len(new_ids) != len(new_vectors):
        raise ValueError(f"vectors: got {len(new_vectors)}, must be as many as ids: {len(new_ids)}")
    return new_ids, new_vectors


def best_places(ids: Ids, scores: Vectors, k: int) -> npt.NDArray[np.intp]:
    """Places of the `k` best scores, best first. All that tie with the last one compete by id."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        worst = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= worst)
    order = np.lexsort((ids[candidates], -scores[candidates]))
    return candidates[order[:k]]


def check_k(k: int) -> None:
    """Raises `ValueError` unless `k` is at least 1."""
    if k < 1:
        raise ValueError(f"k: got {k}, must be at least 1")
