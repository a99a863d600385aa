"""Logits → token: biases and penalties, a mask, then greedy or a draw from what is left.

Order and meaning are vLLM's: bias, repetition, frequency and presence on the logits, then
temperature, min_p, top_k, top_p on the probabilities. All of it happens where the logits are: on a
GPU the host waits for none of it, and may read the token later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.engine.lane import has_streams
from chunkcache.engine.outcome import TokenChances
from chunkcache_kernels.sending import index_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Sampling


class Sampler:
    """Draws the tokens of one choice; its own generator, so requests never disturb each other.

    `prompt_ids` count as seen for the repetition penalty. Choice `index` of a request draws as the
    only choice of one with `seed + index` would. The same seed gives the same tokens on the same
    kind of device.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int] = (), *, index: int = 0
    ) -> None:
        self._sampling = sampling
        self._index = index
        self._generator: torch.Generator | None = None  # once it is known on which device
        penalised = sampling.frequency_penalty or sampling.presence_penalty
        self._history = None
        if penalised or sampling.repetition_penalty != 1.0:
            self._history = History(prompt_ids)
        self._bias: torch.Tensor | None = None  # fp32 [vocab], where there is any

    def pick(self, logits: torch.Tensor, allowed: torch.Tensor | None = None) -> Drawn:
        """One token from fp32 logits `[vocab]`, where they are. Temperature 0 takes the first
        maximum.

        Only tokens in `allowed`, bool `[vocab]`, can be drawn, whatever was asked for; at least
        one of them must be true. It counts as generated from here on.
        """
        sampling = self._sampling
        logits = self._adjusted(logits)
        if allowed is not None:
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        if sampling.temperature == 0.0:
            token = logits.argmax()
        else:
            probabilities = filtered_probabilities(
                logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
            )
            token = one_of(probabilities, self._generator_on(logits.device))
        if self._history is not None:
            self._history.add(token)
        return Drawn(token, logits.max().isfinite())

    def written_instead(self, drawn: int, token: int) -> None:
        """What was drawn last has not been written, but this token."""
        if self._history is not None and token != drawn:
            self._history.take_back(drawn, token)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self._sampling.seed is None:
                self._generator.seed()
            else:  # any integer
                self._generator.manual_seed((self._sampling.seed + self._index) % (1 << 64))
        return self._generator

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        given = self._sampling.logit_bias
        if given:
            if self._bias is None:
                self._bias = torch.zeros_like(logits)
                index = index_of(np.array(list(given), dtype=np.int64), logits.device)
                self._bias[index] = torch.tensor(list(given.values())).to(logits)
            logits = logits + self._bias
        return self._history.penalised(logits, self._sampling) if self._history else logits


class History:
    """Which tokens stand before the next one: in the prompt, and how often in the answer."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._prompt_ids = np.unique(np.array(prompt_ids, dtype=np.int64))
        self._counts: torch.Tensor | None = None  # fp32 [vocab], in the answer
        self._in_prompt: torch.Tensor | None = None  # bool [vocab]

    def add(self, token: torch.Tensor) -> None:
        """A token, int64 `[]`, has been generated."""
        assert self._counts is not None, "drawn without penalties"
        self._counts.index_add_(0, token.view(1), self._counts.new_ones(1))

    def take_back(self, drawn: int, written: int) -> None:
        """A token that was added is not in the answer; another one is in its place."""
        assert self._counts is not None, "drawn without penalties"
        self._counts[drawn] -= 1.0
        self._counts[written] += 1.0

    def penalised(self, logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """fp32 `[vocab]`: repetition (Keskar et al. 2019, arXiv 1909.05858) over prompt and answer,
        frequency and presence over the answer alone.
        """
        if self._counts is None or self._in_prompt is None:
            self._counts = torch.zeros_like(logits)
            self._in_prompt = torch.zeros_like(logits, dtype=torch.bool)
            self._in_prompt.index_fill_(0, index_of(self._prompt_ids, logits.device), True)
        repetition = sampling.repetition_penalty
        if repetition != 1.0:
            weaker = torch.where(logits > 0, logits / repetition, logits * repetition)
            logits = torch.where(self._in_prompt | (self._counts > 0), weaker, logits)
        if sampling.frequency_penalty or sampling.presence_penalty:
            penalty = sampling.frequency_penalty * self._counts + sampling.presence_penalty
            logits = torch.where(self._counts > 0, logits - penalty, logits)
        return logits


def one_of(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """int64 `[]`: an index, as likely as `[n]` says; whose clock rings first, of clocks that run so
    fast. What `torch.multinomial` draws, without the look at the numbers that it makes the host
    wait for.
    """
    rings = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / rings).argmax()


class Drawn:
    """A token on a device, and on its way to the host: read it when it is there, or wait for it.

    `token` is int64 `[]`, `sound` bool `[]`: whether what it was drawn from are finite numbers.
    """

    def __init__(self, token: torch.Tensor, sound: torch.Tensor) -> None:
        self.there = token
        self._here = torch.stack([token, sound.to(token.dtype)])
        self._event: torch.cuda.Event | None = None
        if has_streams(token.device):
            there = self._here
            self._here = torch.empty(2, dtype=token.dtype, pin_memory=True)
            self._here.copy_(there, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(token.device))

    def read(self) -> tuple[int, bool]:
        """Which it is, and whether what it was drawn from are finite numbers."""
        if self._event is not None:
            self._event.synchronize()
        token, is_sound = self._here.tolist()
        return token, bool(is_sound)


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
