"""Numbers rounded to few bits, in groups of neighbouring rows that share a range, and packed.

A group's lowest number and its step are kept in bfloat16, rounded outwards so that the range still
covers the group: no number is off by more than half a step. After KIVI (arXiv 2402.02750).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.errors import CorruptRecord, StoreError

if TYPE_CHECKING:
    from chunkcache_kernels.codes import Codes


@dataclass(frozen=True, slots=True)
class GroupRounding:
    """`[rows, channels]` to `bits` a number; `group` rows of a channel share lowest and step.

    `codes` does in C what is done by torch without it.
    """

    bits: int
    group: int
    codes: Codes | None = field(default=None, repr=False)

    def coded_bytes(self, rows: int, channels: int) -> int:
        """Length of what `encode` makes."""
        groups = -(-rows // self.group)
        return 4 * groups * channels + packed_bytes(rows * channels, self.bits)

    def encode(self, numbers: torch.Tensor, largest: float) -> bytes:
        """`numbers` are float32 `[rows, channels]`; what is decoded stays within ± `largest`.

        Raises:
            StoreError: a number is not finite, or so large that its group's range is not.
        """
        if not len(numbers):
            return b""
        coded = self._encoded(numbers, largest)
        if coded is None:
            raise StoreError(f"codec: the KV has numbers beyond {largest:g}, or what is no number")
        return coded

    def decode(self, buffer: memoryview, rows: int, channels: int) -> torch.Tensor:
        """Float32 `[rows, channels]`. Raises `CorruptRecord`: the buffer has another length."""
        numbers = torch.empty((rows, channels))
        self.decode_into(buffer, numbers)
        return numbers

    def decode_into(self, buffer: memoryview, out: torch.Tensor) -> None:
        """The same into `[rows, channels]` of any number type, whose rows may lie apart."""
        expected = self.coded_bytes(*out.shape)
        if len(buffer) != expected:
            raise CorruptRecord(f"codec: a part has {len(buffer)} bytes, expected {expected}")
        if self.codes is None:
            out.copy_(self._decoded(buffer, *out.shape))
        elif expected:
            coded = np.frombuffer(buffer, np.uint8)
            self.codes.from_groups(coded, out, self.bits, self.group)

    def _encoded(self, numbers: torch.Tensor, largest: float) -> bytes | None:
        """None: a number cannot be coded."""
        rows, channels = numbers.shape
        if self.codes is not None:
            coded = np.empty(self.coded_bytes(rows, channels), np.uint8)
            whole = numbers.contiguous()
            done = self.codes.to_groups(whole, coded, self.bits, self.group, largest)
            return coded.tobytes() if done else None
        grouped = self._grouped(numbers)
        levels = (1 << self.bits) - 1
        lowest = rounded_down(grouped.amin(dim=1))
        width = grouped.amax(dim=1) - lowest.float()
        step = -rounded_down(-width / levels)
        top = lowest.float() + levels * step.float()
        if not bool((top <= largest).all() and (lowest.float() >= -largest).all()):
            return None
        scale = step.float().clamp_min(torch.finfo(torch.float32).tiny)
        codes = (grouped - lowest.float()[:, None]).div_(scale[:, None]).round_().clamp_(0, levels)
        codes = codes.to(torch.uint8).view(-1, channels)[:rows]
        return _octets(lowest) + _octets(step) + pack(codes.reshape(-1).numpy(), self.bits)

    def _decoded(self, buffer: memoryview, rows: int, channels: int) -> torch.Tensor:
        if not rows:
            return torch.empty((0, channels))
        groups = -(-rows // self.group)
        ranges = 2 * groups * channels
        lowest = bfloat16_of(buffer[:ranges]).view(groups, 1, channels)
        step = bfloat16_of(buffer[ranges : 2 * ranges]).view(groups, 1, channels)
        codes = unpack(buffer[2 * ranges :], rows * channels, self.bits)
        numbers = torch.from_numpy(codes).view(rows, channels).float()
        whole = rows // self.group
        inside = numbers[: whole * self.group].view(whole, self.group, channels)
        inside.mul_(step[:whole]).add_(lowest[:whole])
        if whole < groups:
            numbers[whole * self.group :].mul_(step[-1]).add_(lowest[-1])
        return numbers

    def _grouped(self, numbers: torch.Tensor) -> torch.Tensor:
        """`[groups, group, channels]`; the last group is filled up with its last row."""
        missing = -len(numbers) % self.group
        if missing:
            numbers = torch.cat((numbers, numbers[-1:].expand(missing, -1)))
        return numbers.view(-1, self.group, numbers.shape[1])


def packed_bytes(count: int, bits: int) -> int:
    """Length of what `pack` makes of `count` codes."""
    return sum(-(-count * width // 8) for width in _widths(bits))


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Codes below 2^bits, uint8, without gaps.

    They are cut into pieces of 8, 4, 2 or 1 bits. Of a width, byte j has the pieces number j,
    j + n, j + 2n, …, the first one lowest: whole arrays are shifted, no neighbours woven together.
    """
    parts, shift = [], 0
    for width in _widths(bits):
        pieces = (codes >> shift) & ((1 << width) - 1)
        length = -(-len(codes) * width // 8)
        padded = np.zeros(length * (8 // width), np.uint8)
        padded[: len(pieces)] = pieces
        packed = np.zeros(length, np.uint8)
        for place, run in enumerate(padded.reshape(8 // width, length)):
            packed |= run << (place * width)
        parts.append(packed.tobytes())
        shift += width
    return b"".join(parts)


def unpack(buffer: memoryview, count: int, bits: int) -> np.ndarray:
    """The codes that `pack` packed, uint8 `[count]`; the buffer must have their length."""
    codes, at, shift = np.zeros(count, np.uint8), 0, 0
    for width in _widths(bits):
        length = -(-count * width // 8)
        packed = np.frombuffer(buffer[at : at + length], np.uint8)
        pieces = np.empty((8 // width, length), np.uint8)
        for place in range(8 // width):
            np.bitwise_and(packed >> (place * width), (1 << width) - 1, out=pieces[place])
        codes |= pieces.reshape(-1)[:count] << shift
        at, shift = at + length, shift + width
    return codes


def rounded_down(numbers: torch.Tensor) -> torch.Tensor:
    """The largest bfloat16 that is not above; of a NaN a NaN."""
    nearest = numbers.to(torch.bfloat16)
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.float() > numbers, below, nearest)


def bfloat16_of(buffer: memoryview) -> torch.Tensor:
    """The numbers in a buffer, as float32."""
    bits = np.frombuffer(buffer, "<u2").astype(np.uint32) << 16
    return torch.from_numpy(bits.view(np.float32))


def bfloat16_bytes(numbers: torch.Tensor) -> bytes:
    """What `bfloat16_of` reads."""
    return _octets(numbers.to(torch.bfloat16))


def _octets(numbers: torch.Tensor) -> bytes:
    return numbers.reshape(-1).view(torch.uint8).numpy().tobytes()


def _widths(bits: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if bits & width]
