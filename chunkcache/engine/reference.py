"""What transformers answers with a model's own modules, and how far rounding alone moves that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from chunkcache.engine.facts import decoder_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.engine.decoder import DecoderModel

_SHIFTS = (5, 11)  # of all positions: the same attention, other roundings of the angles


@torch.inference_mode()
def transformers_logits(
    model: DecoderModel,
    tokens: Sequence[int],
    *,
    attention: str = "eager",
    shift: int = 0,
    exact_angles: bool = False,
) -> torch.Tensor:
    """fp32 logits `[tokens, vocab]` on CPU by transformers' own forward pass of the same modules.

    Its own attention and its own, fresh rotary; with `shift` all positions are that much larger,
    with `exact_angles` its angles are not rounded.
    """
    with as_transformers_runs_it(model, attention):
        decoder = decoder_of(model.hf)
        if exact_angles:
            decoder.rotary_emb = ExactAngles(decoder.rotary_emb)
        ids = torch.tensor([list(tokens)], device=model.device)
        where = torch.arange(shift, shift + len(tokens), device=model.device)[None]
        hf: Any = model.hf
        return hf(ids, position_ids=where, use_cache=False).logits[0].float().cpu()  # type: ignore[no-any-return]


def type_noise(model: DecoderModel, tokens: Sequence[int], reference: torch.Tensor) -> float:
    """How far transformers differs from itself where only rounding can differ.

    `reference` are its last logits with eager attention. The same with another attention function
    (sums in another order), and with all positions shifted (other roundings of the angles).
    """
    ways: list[dict[str, Any]] = [{"shift": shift} for shift in _SHIFTS]
    if getattr(decoder_of(model.hf), "_supports_sdpa", False):  # it has no soft-caps, no sinks
        ways.append({"attention": "sdpa"})
    noises = []
    for way in ways:
        logits = transformers_logits(model, tokens, **way)
        noises.append(difference(logits[-len(reference) :], reference))
    return max(noises)


class ExactAngles(torch.nn.Module):
    """A rotary embedding of transformers' whose angles are not rounded; in its place.

    In fp32 the product of a position and a frequency is off by up to 1e-4 at 2,000 tokens. That of
    a power of two is not: a position's turn is made of those of its binary digits.
    """

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **told: Any
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """See the rotary's own: cos and sin, or the complex numbers that they are parts of.

        `position_ids` `[..., tokens]`, alike in all that precedes.
        """
        positions = position_ids.flatten(0, -2)[0]
        last = int(positions.max())
        digits = [1 << n for n in range(last.bit_length())]
        asked = positions.new_tensor([0, *digits, last])  # the last: some change with the length
        asked = asked.expand(*position_ids.shape[:-1], -1)
        given = self.rotary(x, asked, *more, **told)
        whole = given if torch.is_tensor(given) else torch.complex(*(g.double() for g in given))
        still, *turns = whole.to(torch.complex128).unbind(-2)[:-1]
        size = still.abs()
        found = still.unsqueeze(-2).repeat_interleave(len(positions), -2)
        for digit, turn in zip(digits, turns, strict=True):
            found[..., (positions & digit) != 0, :] *= (turn / size).unsqueeze(-2)
        if torch.is_tensor(given):
            return found.to(given.dtype)
        return found.real.to(given[0].dtype), found.imag.to(given[0].dtype)


@contextmanager
def as_transformers_runs_it(model: DecoderModel, attention: str) -> Iterator[None]:
    """Within, the model's modules run by themselves, with that attention function of transformers'
    and a fresh rotary embedding.
    """
    hf: Any = model.hf
    decoder = decoder_of(hf)
    config = decoder.config
    ours, rotary = config._attn_implementation, decoder.rotary_emb
    config._attn_implementation = attention
    decoder.rotary_emb = type(rotary)(config=config).to(model.device)
    try:
        yield
    finally:
        config._attn_implementation, decoder.rotary_emb = ours, rotary


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere counts as infinite."""
    worst = float((a - b).abs().max())
    return worst if worst == worst else float("inf")
