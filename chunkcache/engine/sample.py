"""Logits → token: greedy, temperature, top-k, top-p, seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from chunkcache.protocol import Sampling


class Sampler:
    """Draws the tokens of one request; its own generator, so requests never disturb each other."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is not None:
            self._generator.manual_seed(sampling.seed)
        else:
            self._generator.seed()

    def draw(self, logits: torch.Tensor) -> int:
        """One token id from fp32 logits `[vocab]`. Temperature 0 takes the first maximum."""
        sampling = self._sampling
        if sampling.temperature == 0.0:
            return int(logits.argmax())
        probabilities = filtered_probabilities(
            logits.cpu(), sampling.temperature, sampling.top_k, sampling.top_p
        )
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def filtered_probabilities(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """Softmax of `logits / temperature`, cut to the top k, then to the smallest set reaching top_p.

    The token that crosses top_p is kept, so the set is never empty.
    """
    probabilities = torch.softmax(logits / temperature, dim=-1)
    ordered, order = probabilities.sort(descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[top_k:] = False
    keep &= (ordered.cumsum(0) - ordered) < top_p
    kept = torch.zeros_like(probabilities)
    kept[order[keep]] = ordered[keep]
    return kept / kept.sum()
