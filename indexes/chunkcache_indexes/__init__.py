"""Vector and lexical search: exact, approximate, by words, and fused. Knows nothing of chunkcache.

`FlatIndex` is the slow twin: `recall_at_k` measures any other index against it.
"""

from __future__ import annotations

from chunkcache_indexes.ann import HnswIndex
from chunkcache_indexes.base import NO_ID, Hits, VectorIndex
from chunkcache_indexes.flat import FlatIndex
from chunkcache_indexes.hybrid import RRF_K, reciprocal_rank_fusion
from chunkcache_indexes.index_file import PARTIAL_SUFFIX, IndexFileError
from chunkcache_indexes.lexical import LexicalHits, LexicalIndex, words_of
from chunkcache_indexes.recall import recall_at_k

__all__ = [
    "NO_ID",
    "PARTIAL_SUFFIX",
    "RRF_K",
    "FlatIndex",
    "Hits",
    "HnswIndex",
    "IndexFileError",
    "LexicalHits",
    "LexicalIndex",
    "VectorIndex",
    "recall_at_k",
    "reciprocal_rank_fusion",
    "words_of",
]
