"""What lies in records, on the device: codec bytes to pages, KV to codec bytes; the twins in torch.

A *form* says what the bytes of one layer are: numbers as they are, K and then V `[tokens, heads,
dim]`; or both rounded to 8 or 4 bits, each as its lowest numbers and its steps (bf16, `[groups,
channels]`, a group of neighbouring tokens shares them) and its codes: a number is lowest + code ·
step. Of 4 bits, byte j of n has code j below and code j + n above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from chunkcache_kernels.fours import rounded_down
from chunkcache_kernels.portable import place_chunk

if TYPE_CHECKING:
    import numpy as np

    from chunkcache_kernels.arena import Arena

BITS = (8, 4)  # that numbers are rounded to


@dataclass(frozen=True, slots=True)
class Form:
    """Layers as bytes: `dtype` numbers if `bits` is 0, else so many bits of each, in groups of
    `group` tokens; `dtype` is then what they were rounded from.
    """

    tokens: int
    heads: int
    dim: int
    dtype: torch.dtype
    bits: int = 0
    group: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (0, *BITS):
            raise ValueError(f"bits: got {self.bits}, of {(0, *BITS)}")
        if self.bits and (self.group < 1 or self.channels % 8):
            # ranges behind the codes of K would begin inside a number
            raise ValueError(
                f"group: got {self.group}, at least 1; channels: got {self.channels}, a multiple "
                "of 8. Hint: read other records on the host"
            )

    @property
    def channels(self) -> int:
        """Of all heads."""
        return self.heads * self.dim

    @property
    def groups(self) -> int:
        """Groups of tokens."""
        return -(-self.tokens // self.group)

    @property
    def code_bytes(self) -> int:
        """Of the codes of K, and of those of V."""
        return self.tokens * self.channels * self.bits // 8

    @property
    def part_bytes(self) -> int:
        """Of K, and of V."""
        if not self.bits:
            return self.tokens * self.channels * self.dtype.itemsize
        return 4 * self.groups * self.channels + self.code_bytes

    @property
    def layer_bytes(self) -> int:
        """Of K and V of one layer."""
        return 2 * self.part_bytes


def decoded(coded: torch.Tensor, form: Form) -> torch.Tensor:
    """fp32 `[layers, 2, tokens, heads, dim]` of uint8 `[layers, layer_bytes]`."""
    shape = len(coded), 2, form.tokens, form.heads, form.dim
    parts = coded.view(len(coded), 2, form.part_bytes)
    if not form.bits:
        return parts.contiguous().view(form.dtype).view(shape).float()
    ranges = parts[..., : 4 * form.groups * form.channels].contiguous().view(torch.bfloat16)
    lowest, step = ranges.float().view(len(coded), 2, 2, form.groups, form.channels).unbind(2)
    codes = parts[..., 4 * form.groups * form.channels :]
    if form.bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), dim=-1)
    numbers = codes.float().view(len(coded), 2, form.tokens, form.channels)
    lowest, step = (
        x.repeat_interleave(form.group, dim=2)[:, :, : form.tokens] for x in (lowest, step)
    )
    return (numbers * step + lowest).view(shape)


def promote(
    arena: Arena,
    first: int,
    coded: torch.Tensor,
    form: Form,
    pages: np.ndarray,
    angles: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Layers of a chunk from the bytes of its record to its pages, by torch.

    Args:
        first: the layer of the arena that the first one is.
        coded: uint8 `[layers, layer_bytes]`, on the arena's device.
        pages: int64, ceil(tokens / page_tokens) of them; what is left of the last one becomes 0
            (of 4-bit pages the last token again).
        angles: fp32 cos and sin `[tokens, rotary_dim]` of the places in the chunk.

    Numbers are rounded to `form.dtype` once they are decoded, as a record read on the host is.
    """
    place_chunk(arena, first, decoded(coded, form).to(form.dtype), pages, angles)


def quantise(kv: torch.Tensor, form: Form) -> torch.Tensor:
    """uint8 `[layers, layer_bytes]` of `kv` `[layers, 2, tokens, heads, dim]`, K before RoPE.

    Lowest numbers and steps are rounded outwards, so that no number is off by more than half a
    step. A number that is not finite makes its group's step not finite: who keeps the bytes looks.
    """
    layers, levels = len(kv), (1 << form.bits) - 1
    rows = kv.float().reshape(layers, 2, form.tokens, form.channels)
    missing = -form.tokens % form.group
    filled = torch.cat((rows, rows[:, :, -1:].expand(-1, -1, missing, -1)), dim=2)
    grouped = filled.view(layers, 2, form.groups, form.group, form.channels)
    lowest = rounded_down(grouped.amin(dim=3))
    step = -rounded_down(-(grouped.amax(dim=3) - lowest.float()) / levels)
    scale = step.float().clamp_min(torch.finfo(torch.float32).tiny)
    codes = ((grouped - lowest.float()[:, :, :, None]) / scale[:, :, :, None]).round()
    codes = codes.clamp(0, levels).to(torch.uint8).flatten(2, 3)[:, :, : form.tokens].flatten(2)
    if form.bits == 4:
        low, high = codes.chunk(2, dim=2)
        codes = low | high << 4
    octets = [x.contiguous().view(torch.uint8).flatten(2) for x in (lowest, step)]
    return torch.cat((*octets, codes), dim=2).flatten(1)
