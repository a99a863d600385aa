"""What a chunk knows of its birth, as repair policies read it."""

from __future__ import annotations

import numpy as np

from chunkcache.chunk import ChunkStats

LETTERS = [bytes([c]) * 16 for c in b"abcd"]


def stats(
    born_tokens: int,
    prior: tuple[bytes, ...] = (),
    *,
    token_inter: np.ndarray | None = None,
    token_head: np.ndarray | None = None,
) -> ChunkStats:
    """Statistics of a chunk that kept half of its attention inside and spread the rest."""
    count = len(prior)
    return ChunkStats(
        token_inter=np.zeros(born_tokens, np.float32) if token_inter is None else token_inter,
        token_head=np.zeros(born_tokens, np.float32) if token_head is None else token_head,
        chunk_inter=np.full(count, born_tokens / 2 / max(1, count), np.float32),
        intra=born_tokens / 2,
        prior_digests=prior,
        prior_lengths=(10,) * count,
    )
