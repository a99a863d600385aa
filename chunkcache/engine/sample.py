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
            self._generator.manual_seed(sampling.seed % (1 << 64))  # any integer is a seed
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

    As in transformers and vLLM, top_p is a share of what top_k has left. The token that crosses it
    is kept, so the set is never empty. float64 `[vocab]`, summing to 1: a sum over a large
    vocabulary in fp32 would be off by more than the tail.
    """
    # the largest logit is taken off before the division, which a tiny temperature would overflow
    scaled = (logits - logits.max()).double() / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if not top_k and top_p >= 1.0:
        return probabilities
    likely, order = probabilities.topk(min(top_k or len(logits), len(logits)))
    likely /= likely.sum()
    if top_p < 1.0:
        likely = likely.where(likely.cumsum(0) - likely < top_p, 0.0)
    kept = torch.zeros_like(probabilities)
    kept[order] = likely
    return kept / kept.sum()
