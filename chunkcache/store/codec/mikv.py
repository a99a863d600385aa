"""MiKV (arXiv 2402.18096): tokens that matter in more bits than the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.errors import CorruptRecord
from chunkcache.store.codec.groups import GroupRounding

if TYPE_CHECKING:
    from chunkcache.chunk import ChunkStats
    from chunkcache.codec_spec import CodecSpec
    from chunkcache_kernels.codes import Codes


class MikvCodec:
    """`share` of the tokens in `high` bits, the rest in `low`, per channel over groups of tokens.

    What matters is what a record's statistics tell: those tokens that looked most at what stood
    before the chunk. K is rounded per channel, which does what the paper's balancer of channels is
    for; that needs queries, which no record has.
    """

    def __init__(self, spec: CodecSpec, codes: Codes | None = None) -> None:
        self.name = str(spec)
        self._share = spec.number("share")
        group = spec.count("group")
        self._high = GroupRounding(spec.count("high"), group, codes)
        self._low = GroupRounding(spec.count("low"), group, codes)

    def encode_layer(self, layer: int, kv: torch.Tensor, stats: ChunkStats) -> bytes:
        """See `Codec`."""
        largest = torch.finfo(kv.dtype).max
        matters = np.zeros(kv.shape[1], dtype=bool)
        order = np.argsort(-stats.token_inter, kind="stable")
        matters[order[: math.ceil(self._share * len(order))]] = True
        chosen, parts = torch.from_numpy(matters), [np.packbits(matters).tobytes()]
        for part in kv.flatten(2).float():
            parts.append(self._high.encode(part[chosen], largest))
            parts.append(self._low.encode(part[~chosen], largest))
        return b"".join(parts)

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """See `Codec`."""
        into = out.view(2, out.shape[1], -1)
        tokens, channels = into.shape[1:]
        marks = -(-tokens // 8)
        octets = np.frombuffer(buffer[:marks], np.uint8)
        matters = np.unpackbits(octets, count=tokens).astype(bool) if len(octets) == marks else None
        many = 0 if matters is None else int(matters.sum())
        high = self._high.coded_bytes(many, channels)
        low = self._low.coded_bytes(tokens - many, channels)
        if matters is None or len(buffer) != marks + 2 * (high + low):
            raise CorruptRecord(f"{self.name}: a layer has {len(buffer)} bytes, not as many as due")
        chosen, at = torch.from_numpy(matters), marks
        for part in into:
            decoded = self._high.decode(buffer[at : at + high], many, channels)
            part[chosen] = decoded.to(out.dtype)
            at += high
            decoded = self._low.decode(buffer[at : at + low], tokens - many, channels)
            part[~chosen] = decoded.to(out.dtype)
            at += low
