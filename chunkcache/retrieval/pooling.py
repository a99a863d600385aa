"""Hidden states of a text's tokens → its vector: pooling, what is behind it, unit length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from chunkcache.retrieval.embedder_folder import EmbedderFolder, PoolingMode


def pooled(hidden: torch.Tensor, folder: EmbedderFolder, skipped: int) -> torch.Tensor:
    """The vector of one text, `[dim]`, from its tokens' hidden states `[tokens, width]`.

    Args:
        skipped: tokens at the beginning, a prompt's, that means and maxima leave out.
    """
    parts = [_pool(hidden, mode, min(skipped, len(hidden) - 1)) for mode in folder.pooling]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def finished(vectors: torch.Tensor, folder: EmbedderFolder) -> torch.Tensor:
    """Pooled vectors `[texts, dim]` through the steps behind pooling, of unit length."""
    for step in folder.steps:
        if step == "Normalize":
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        else:
            assert not isinstance(step, str)
            vectors = step(vectors)
    return torch.nn.functional.normalize(vectors, dim=-1)


def _pool(hidden: torch.Tensor, mode: PoolingMode, skipped: int) -> torch.Tensor:
    if mode == "cls":
        return hidden[0]
    if mode == "lasttoken":
        return hidden[-1]
    kept = hidden[skipped:]
    if mode == "max":
        return kept.amax(0)
    if mode == "mean":
        return kept.mean(0)
    if mode == "mean_sqrt_len_tokens":
        return kept.sum(0) / math.sqrt(len(kept))
    weights = torch.arange(skipped + 1, len(hidden) + 1, dtype=hidden.dtype)
    return (weights[:, None] * kept).sum(0) / weights.sum()
