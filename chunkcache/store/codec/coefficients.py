"""Coefficients in a basis, rounded as Lloyd and Max would for a normal distribution, and packed.

A coefficient's scale is its root mean square in the chunk, in bfloat16. Those without bits are left
out. What has as many bits goes together: a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.store.codec.groups import bfloat16_bytes, bfloat16_of, pack, packed_bytes, unpack

if TYPE_CHECKING:
    from chunkcache_kernels.codes import Codes, Runs

MOST_BITS = 8
_LLOYD_ROUNDS = 300


class Coefficients:
    """Rounds them. `codes` does in C what is done by torch without it, bit by bit."""

    def __init__(self, codes: Codes | None = None) -> None:
        self.centres = torch.zeros((MOST_BITS + 1, 1 << MOST_BITS))  # by bits and code
        self._edges = torch.full_like(self.centres, torch.inf)
        for bits in range(1, MOST_BITS + 1):
            centres = lloyd_max(bits)
            self.centres[bits, : 1 << bits] = centres
            self._edges[bits, : (1 << bits) - 1] = (centres[1:] + centres[:-1]) / 2
        self._codes = codes

    def coded(self, numbers: torch.Tensor, scales: torch.Tensor, runs: Runs) -> bytes:
        """The scales, then the codes of each run.

        Args:
            numbers: float32 `[tokens, at least kept]`, the first ones are kept.
            scales: of them, see `scales_of`; finite.
        """
        scales = scales[: runs.kept]
        divisors = scales.clamp_min(torch.finfo(torch.float32).tiny)
        return bfloat16_bytes(scales) + self._codes_of(numbers, divisors, runs)

    def decoded(self, buffer: memoryview, tokens: int, runs: Runs) -> torch.Tensor:
        """Float32 `[tokens, kept]`; the buffer must be as long as `coded_bytes` says."""
        if self._codes is not None:
            coded = np.frombuffer(buffer, np.uint8)
            return self._codes.from_centres(coded, tokens, runs, self.centres)
        at, first = 2 * runs.kept, 0
        scales, numbers = bfloat16_of(buffer[:at]), torch.empty((tokens, runs.kept))
        for bits, count in runs.pairs.tolist():
            length = packed_bytes(tokens * count, bits)
            codes = unpack(buffer[at : at + length], tokens * count, bits)
            centres = self.centres[bits][torch.from_numpy(codes).int()]
            numbers[:, first : first + count] = centres.view(-1, count)
            at, first = at + length, first + count
        return numbers.mul_(scales)

    def _codes_of(self, numbers: torch.Tensor, divisors: torch.Tensor, runs: Runs) -> bytes:
        if self._codes is not None:
            coded = np.empty(runs.packed_bytes(len(numbers)), np.uint8)
            self._codes.to_centres(numbers, divisors, runs, self._edges, coded)
            return coded.tobytes()
        normal, parts, first = numbers[:, : runs.kept] / divisors, [], 0
        for bits, count in runs.pairs.tolist():
            edges = self._edges[bits, : (1 << bits) - 1]
            codes = torch.bucketize(normal[:, first : first + count].contiguous(), edges)
            parts.append(pack(codes.to(torch.uint8).reshape(-1).numpy(), bits))
            first += count
        return b"".join(parts)


def scales_of(numbers: torch.Tensor) -> torch.Tensor:
    """Float32 `[coefficients]` of `[tokens, coefficients]`. One odd number makes its own odd."""
    return numbers.square().mean(dim=0).sqrt().to(torch.bfloat16).float()


def coded_bytes(tokens: int, runs: Runs) -> int:
    """Length of what `Coefficients.coded` makes."""
    return 2 * runs.kept + runs.packed_bytes(tokens)


def lloyd_max(bits: int) -> torch.Tensor:
    """The 2^bits centres that lose least of a standard normal distribution (Lloyd 1982, Max 1960).

    From quantiles of three times its variance, which they come to for many bits, by Lloyd's rule.
    """
    count = 1 << bits
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    centres: torch.Tensor = 3**0.5 * torch.special.ndtri(places)
    for _ in range(_LLOYD_ROUNDS):
        inner = (centres[1:] + centres[:-1]) / 2
        edges = torch.cat((inner.new_tensor([-torch.inf]), inner, inner.new_tensor([torch.inf])))
        density = torch.exp(-edges.square() / 2) / (2 * torch.pi) ** 0.5
        mass = torch.special.ndtr(edges).diff()
        centres = -density.diff() / mass
    return centres.float()


def runs_of(bits: np.ndarray) -> list[tuple[int, int]]:
    """Bits and number of coefficients, for all that have as many; those with none left out."""
    return [(b, int((bits == b).sum())) for b in range(MOST_BITS, 0, -1) if (bits == b).any()]
