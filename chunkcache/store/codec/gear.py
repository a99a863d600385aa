"""GEAR (arXiv 2403.05527): few bits a number, plus a low rank, plus the outliers as they are.

Written from the paper's formulas. Outliers are counted along the axis that they are taken from; a
group without range, a last group that is not full and any number of tokens are coded as any other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.codec.groups import GroupRounding, bfloat16_bytes, bfloat16_of

if TYPE_CHECKING:
    from chunkcache.chunk import ChunkStats
    from chunkcache.codec_spec import CodecSpec
    from chunkcache_kernels.codes import Codes

_ITERATIONS = 3
_MOST_ROWS = 65_535  # places of outliers are 16 bits


class GearCodec:
    """K is rounded per channel over groups of tokens, V per token over groups of channels.

    Of every channel of K, and every token of V, the largest and the smallest numbers (`sparse` of
    them together) are kept apart. What is then still missing is approximated for every head
    with rank `rank`.
    """

    def __init__(self, spec: CodecSpec, codes: Codes | None = None) -> None:
        self.name = str(spec)
        self._rounding = GroupRounding(spec.count("bits"), spec.count("group"), codes)
        self._rank = spec.count("rank")
        self._sparse = spec.number("sparse")

    def encode_layer(self, layer: int, kv: torch.Tensor, stats: ChunkStats) -> bytes:
        """See `Codec`."""
        if kv.shape[1] > _MOST_ROWS or kv[0, 0].numel() > _MOST_ROWS:
            raise StoreError(f"{self.name}: got {tuple(kv.shape)}, at most {_MOST_ROWS} of each")
        if not bool(kv.isfinite().all()):
            raise StoreError(f"{self.name}: the KV has what is no number")
        largest = torch.finfo(kv.dtype).max
        return b"".join(
            self._encode(part, largest, by_token=by_token)
            for part, by_token in zip(kv.float(), (False, True), strict=True)
        )

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """See `Codec`."""
        tokens, heads, dim = out.shape[1:]
        lengths = [
            sum(self._lengths(tokens, heads, dim, by_token=by_token)) for by_token in (False, True)
        ]
        if len(buffer) != sum(lengths):
            raise CorruptRecord(
                f"{self.name}: a layer has {len(buffer)} bytes, expected {sum(lengths)}"
            )
        limit = torch.finfo(out.dtype).max
        for part, by_token in ((0, False), (1, True)):
            piece = buffer[: lengths[0]] if part == 0 else buffer[lengths[0] :]
            whole = self._decode(piece, tokens, heads, dim, by_token=by_token)
            out[part] = whole.clamp_(-limit, limit)

    def _encode(self, part: torch.Tensor, largest: float, *, by_token: bool) -> bytes:
        """`[tokens, heads, dim]` to bytes."""
        vectors = part.flatten(1).T if by_token else part.flatten(1)
        vectors = vectors.contiguous()  # a vector is a column
        kept = self._kept(len(vectors))
        order = vectors.argsort(dim=0, stable=True)
        places = torch.cat((order[:kept], order[len(order) - kept :]))
        outliers = bfloat16_bytes(vectors.gather(0, places))
        inner = vectors.gather(0, order[kept : len(order) - kept])
        filled = vectors.scatter(0, places, inner.mean(dim=0, keepdim=True).expand_as(places))
        coded = self._rounding.encode(filled, largest)
        left = filled - self._rounding.decode(memoryview(coded), *filled.shape)
        left.scatter_(0, places, 0.0)
        missing = (left.T if by_token else left).reshape(part.shape).transpose(0, 1)
        rows, columns = _low_rank(missing, self._rank_for(*part.shape))
        return b"".join(
            (
                coded, places.numpy().astype("<u2").tobytes(), outliers,
                bfloat16_bytes(rows), bfloat16_bytes(columns),
            )
        )  # fmt: skip

    def _decode(
        self, buffer: memoryview, tokens: int, heads: int, dim: int, *, by_token: bool
    ) -> torch.Tensor:
        count, channels = self._vectors(tokens, heads, dim, by_token=by_token)
        pieces, at = [], 0
        for length in self._lengths(tokens, heads, dim, by_token=by_token):
            pieces.append(buffer[at : at + length])
            at += length
        coded, placed, outliers, rows, columns = pieces
        whole = self._rounding.decode(coded, count, channels)
        rank = self._rank_for(tokens, heads, dim)
        low = bfloat16_of(rows).view(heads, tokens, rank) @ bfloat16_of(columns).view(
            heads, rank, dim
        )
        added = low.transpose(0, 1).reshape(tokens, heads * dim)
        whole += added.T if by_token else added
        places = torch.from_numpy(np.frombuffer(placed, "<u2").astype(np.int64)).view(-1, channels)
        if places.numel() and int(places.max()) >= count:
            raise CorruptRecord(f"{self.name}: an outlier is out of its place")
        whole.scatter_(0, places, bfloat16_of(outliers).view(-1, channels))
        return (whole.T if by_token else whole).reshape(tokens, heads, dim)

    def _lengths(self, tokens: int, heads: int, dim: int, *, by_token: bool) -> list[int]:
        """Bytes of the rounded numbers, of places and values of outliers, and of two factors."""
        count, channels = self._vectors(tokens, heads, dim, by_token=by_token)
        outliers = 2 * 2 * self._kept(count) * channels
        rank = self._rank_for(tokens, heads, dim)
        factors = 2 * heads * tokens * rank, 2 * heads * rank * dim
        return [self._rounding.coded_bytes(count, channels), outliers, outliers, *factors]

    @staticmethod
    def _vectors(tokens: int, heads: int, dim: int, *, by_token: bool) -> tuple[int, int]:
        return (heads * dim, tokens) if by_token else (tokens, heads * dim)

    def _kept(self, count: int) -> int:
        """Outliers at either end of a vector of `count` numbers; something is left between."""
        return min(math.ceil(count * self._sparse / 2), (count - 1) // 2)

    def _rank_for(self, tokens: int, heads: int, dim: int) -> int:
        return min(self._rank, tokens, dim)


def _low_rank(matrices: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors `[n, rows, rank]`, `[n, rank, columns]` of the nearest product, nearly.

    Power iteration from a fixed beginning: the same numbers give the same factors.
    """
    count, _, columns = matrices.shape
    draw = torch.Generator().manual_seed(0)
    right = torch.randn((count, columns, rank), generator=draw)
    for _ in range(_ITERATIONS):
        left = torch.linalg.qr(matrices @ right).Q
        right = matrices.transpose(1, 2) @ left
    return left, right.transpose(1, 2)
