"""Logits → token: biases and penalties, a mask, then greedy or a draw from what is left.

Order and meaning are vLLM's: bias, repetition, frequency and presence on the logits, then
temperature, min_p, top_k, top_p on the probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from chunkcache.engine.outcome import TokenChances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Sampling


class Sampler:
    """Draws the tokens of one choice; its own generator, so requests never disturb each other.

    `prompt_ids` count as seen for the repetition penalty. Choice `index` of a request draws as the
    only choice of one with `seed + index` would.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int] = (), *, index: int = 0
    ) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is not None:
            self._generator.manual_seed((sampling.seed + index) % (1 << 64))  # any integer
        else:
            self._generator.seed()
        penalised = sampling.frequency_penalty or sampling.presence_penalty
        self._history = None
        if penalised or sampling.repetition_penalty != 1.0:
            self._history = History(prompt_ids)
        self._bias = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32)
        self._biased = torch.tensor(list(sampling.logit_bias), dtype=torch.int64)

    def draw(self, logits: torch.Tensor, allowed: torch.Tensor | None = None) -> int:
        """One token id from fp32 logits `[vocab]`. Temperature 0 takes the first maximum.

        Only tokens in `allowed`, bool `[vocab]`, can be drawn, whatever was asked for; at least
        one of them must be true. It counts as generated from here on.
        """
        sampling = self._sampling
        logits = self._adjusted(logits)
        if allowed is not None:
            logits = logits.cpu().masked_fill(~allowed, -torch.inf)
        if sampling.temperature == 0.0:
            token = int(logits.argmax())
        else:
            probabilities = filtered_probabilities(
                logits.cpu(), sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
            )
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        if self._history is not None:
            self._history.add(token)
        return token

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        if self._history is None and not len(self._biased):
            return logits
        logits = logits.cpu().clone()
        logits[self._biased] += self._bias
        return self._history.penalised(logits, self._sampling) if self._history else logits


class History:
    """Which tokens stand before the next one: in the prompt, and how often in the answer."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._counts: dict[int, int] = {}
        self._seen = set(prompt_ids)

    def add(self, token: int) -> None:
        """A token has been generated."""
        self._counts[token] = self._counts.get(token, 0) + 1
        self._seen.add(token)

    def penalised(self, logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """fp32 `[vocab]`, in place: repetition (Keskar et al. 2019, arXiv 1909.05858) over prompt
        and answer, frequency and presence over the answer alone.
        """
        repetition = sampling.repetition_penalty
        if repetition != 1.0:
            index = torch.tensor(list(self._seen), dtype=torch.int64)
            seen = logits[index]
            logits[index] = torch.where(seen > 0, seen / repetition, seen * repetition)
        if self._counts and (sampling.frequency_penalty or sampling.presence_penalty):
            index = torch.tensor(list(self._counts), dtype=torch.int64)
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            logits[index] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        return logits


def filtered_probabilities(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float = 0.0
) -> torch.Tensor:
    """Softmax of `logits / temperature` without what is less likely than min_p times the likeliest,
    cut to the top k, then to the smallest set reaching top_p.

    As in transformers and vLLM, top_p is a share of what min_p and top_k have left. The token that
    crosses it is kept, so the set is never empty. float64 `[vocab]`, summing to 1: a sum over a
    large vocabulary in fp32 would be off by more than the tail.
    """
    # the largest logit is taken off before the division, which a tiny temperature would overflow
    scaled = (logits - logits.max()).double() / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if min_p:
        probabilities.masked_fill_(probabilities < min_p * probabilities.max(), 0.0)
        probabilities /= probabilities.sum()
    if not top_k and top_p >= 1.0:
        return probabilities
    likely, order = probabilities.topk(min(top_k or len(logits), len(logits)))
    likely /= likely.sum()
    if top_p < 1.0:
        likely = likely.where(likely.cumsum(0) - likely < top_p, 0.0)
    kept = torch.zeros_like(probabilities)
    kept[order] = likely
    return kept / kept.sum()


def chances_of(logits: torch.Tensor, token: int, alternatives: int) -> TokenChances:
    """How likely the model itself held a token and the likeliest ones: of its logits as they are.

    Biases, penalties, temperature, cuts and masks do not show in it.
    """
    log_probabilities = torch.log_softmax(logits.double().cpu(), dim=-1)
    values, ids = log_probabilities.topk(min(alternatives, len(logits)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenChances(token, float(log_probabilities[token]), top)
