"""Numbers of 4 bits in pages, two in a byte: how they are rounded, packed and read again.

A channel of a page has a lowest number and a step, in bf16: a number is lowest + code · step, as in
int4 records whose groups are a page's tokens, K and V alike (KIVI, arXiv 2402.02750, has a token's
ranges for V; a channel's were measured to be nearer). Both are rounded outwards, so that no number
is off by more than half a step.
"""

from __future__ import annotations

import torch

PAGE_TYPE = torch.uint8  # of arenas: what their numbers are kept as
LEVELS = 15


def rounded_down(numbers: torch.Tensor) -> torch.Tensor:
    """The largest bf16 that is not above."""
    nearest = numbers.to(torch.bfloat16)
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.float() > numbers, below, nearest)


def packed(x: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes, and ranges bf16 `[…, 2, channels]`, of pages whose tokens lie along an axis.

    Args:
        x: `[…, channels, tokens]` or `[…, tokens, channels]`, the last axis an even number.
        tokens: which axis they are, -1 or -2.

    Neighbours on the last axis share a byte, the first one below.
    """
    wide = x.float()
    lowest = rounded_down(wide.amin(dim=tokens))
    step = -rounded_down(-(wide.amax(dim=tokens) - lowest.float()) / LEVELS)
    scale = step.float().clamp_min(torch.finfo(torch.float32).tiny)
    codes = (wide - lowest.float().unsqueeze(tokens)) / scale.unsqueeze(tokens)
    octets = codes.round().clamp(0, LEVELS).to(torch.uint8)
    return octets[..., ::2] | octets[..., 1::2] << 4, torch.stack((lowest, step), dim=-2)


def codes_of(octets: torch.Tensor) -> torch.Tensor:
    """fp32, twice as many on the last axis."""
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2).float()


def read(octets: torch.Tensor, ranges: torch.Tensor, tokens: int) -> torch.Tensor:
    """fp32 numbers of what `packed` gave."""
    lowest, step = ranges.float().unbind(-2)
    return codes_of(octets) * step.unsqueeze(tokens) + lowest.unsqueeze(tokens)


def keys_at(
    octets: torch.Tensor, ranges: torch.Tensor, pages: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """fp32 `[heads, channels, n]` at places of pages, of keys `[pages, heads, channels, t / 2]`."""
    pairs = octets.permute(0, 3, 1, 2)[pages, place // 2]
    codes = torch.where((place % 2 == 1)[:, None, None], pairs >> 4, pairs & 15).float()
    lowest, step = ranges[pages].float().unbind(2)
    return (codes * step + lowest).permute(1, 2, 0)


def values_at(
    octets: torch.Tensor, ranges: torch.Tensor, pages: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """fp32 `[heads, n, channels]`, of values `[pages, heads, t, channels / 2]`."""
    codes = codes_of(octets.permute(0, 2, 1, 3)[pages, place])
    lowest, step = ranges[pages].float().unbind(2)
    return (codes * step + lowest).transpose(0, 1)
