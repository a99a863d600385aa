"""Numbers of 4 bits in pages, eight in a word: how they are rounded, packed and read again.

Keys lie token by token and values channel by channel, the other way round than in other pages: a
tensor core wants neighbours on the axis that a product sums over, and a word has eight of them.
Its half bytes, from the lowest, are numbers 0, 2, 4, 6, 1, 3, 5 and 7, so that a shift and a mask
take two neighbours apart to the halves of a register (the order of FasterTransformer's int4
weights, NVIDIA, cutlass_preprocessors.cc).

A channel of a page has a lowest number and a step, in bf16: a number is lowest + code · step, as in
int4 records whose groups are a page's tokens, K and V alike (KIVI, arXiv 2402.02750, has a token's
ranges for V; a channel's were measured to be nearer). Both are rounded outwards, so that no number
is off by more than half a step.
"""

from __future__ import annotations

import torch

PAGE_TYPE = torch.uint8  # of arenas: what their numbers are kept as
LEVELS = 15
IN_WORD = 8
_NUMBERS = [0, 2, 4, 6, 1, 3, 5, 7]  # of a word's half bytes, from the lowest
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # of its numbers


def rounded_down(numbers: torch.Tensor) -> torch.Tensor:
    """The largest bf16 that is not above."""
    nearest = numbers.to(torch.bfloat16)
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.float() > numbers, below, nearest)


def packed(x: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes, and ranges bf16 `[…, 2, channels]`, of pages whose tokens lie along an axis.

    Args:
        x: `[…, tokens, channels]` or `[…, channels, tokens]`, the last axis a multiple of 8.
        tokens: which axis they are, -2 or -1.
    """
    wide = x.float()
    lowest = rounded_down(wide.amin(dim=tokens))
    step = -rounded_down(-(wide.amax(dim=tokens) - lowest.float()) / LEVELS)
    scale = step.float().clamp_min(torch.finfo(torch.float32).tiny)
    codes = (wide - lowest.float().unsqueeze(tokens)) / scale.unsqueeze(tokens)
    halves = _reordered(codes.round().clamp(0, LEVELS).to(torch.uint8), _NUMBERS)
    return halves[..., ::2] | halves[..., 1::2] << 4, torch.stack((lowest, step), dim=-2)


def codes_of(octets: torch.Tensor) -> torch.Tensor:
    """fp32, twice as many on the last axis."""
    halves = torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2)
    return _reordered(halves, _PLACES).float()


def _reordered(codes: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Each eight on the last axis in another order."""
    return codes.reshape(*codes.shape[:-1], -1, IN_WORD)[..., order].flatten(-2)


def read(octets: torch.Tensor, ranges: torch.Tensor, tokens: int) -> torch.Tensor:
    """fp32 numbers of what `packed` gave."""
    lowest, step = ranges.float().unbind(-2)
    return codes_of(octets) * step.unsqueeze(tokens) + lowest.unsqueeze(tokens)


def keys_at(
    octets: torch.Tensor, ranges: torch.Tensor, pages: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """fp32 `[heads, channels, n]` at places of pages, of keys `[pages, heads, t, channels / 2]`."""
    codes = codes_of(octets.permute(0, 2, 1, 3)[pages, place])
    lowest, step = ranges[pages].float().unbind(2)
    return (codes * step + lowest).permute(1, 2, 0)


def values_at(
    octets: torch.Tensor, ranges: torch.Tensor, pages: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """fp32 `[heads, n, channels]`, of values `[pages, heads, channels, t / 2]`."""
    half = place.new_tensor(_PLACES)[place % IN_WORD] + place // IN_WORD * IN_WORD
    octet = octets.permute(0, 3, 1, 2)[pages, half // 2]
    codes = torch.where((half % 2 == 1)[:, None, None], octet >> 4, octet & 15).float()
    lowest, step = ranges[pages].float().unbind(2)
    return (codes * step + lowest).transpose(0, 1)
