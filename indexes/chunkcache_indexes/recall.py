"""How much of the truth an approximate index finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chunkcache_indexes.base import NO_ID

if TYPE_CHECKING:
    import numpy.typing as npt

    from chunkcache_indexes.base import VectorIndex


def recall_at_k(
    index: VectorIndex, reference: VectorIndex, queries: npt.ArrayLike, k: int
) -> float:
    """Share of the reference's `k` best that the index has among its own `k` best, over queries.

    The reference is a `FlatIndex` over the same vectors. 1.0 when there is nothing to find. Ties
    at place k can cost recall although nothing is wrong; with real vectors they are rare.

    Raises:
        ValueError: see `VectorIndex.search`.
    """
    found = index.search(queries, k).ids
    expected = reference.search(queries, k).ids
    wanted = int((expected != NO_ID).sum())
    if wanted == 0:
        return 1.0
    hits = sum(
        len(np.intersect1d(mine[mine != NO_ID], theirs[theirs != NO_ID]))
        for mine, theirs in zip(found, expected, strict=True)
    )
    return hits / wanted
