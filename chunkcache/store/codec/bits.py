"""Every number of K and V in a few bits: `int8`, `int4`, and `bits` with another number of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from chunkcache.errors import CorruptRecord
from chunkcache.store.codec.groups import GroupRounding

if TYPE_CHECKING:
    from chunkcache.chunk import ChunkStats
    from chunkcache.codec_spec import CodecSpec
    from chunkcache_kernels.codes import Codes


class BitsCodec:
    """K and V per channel, over groups of tokens (K as in KIVI; V of small models too, see log)."""

    def __init__(self, spec: CodecSpec, codes: Codes | None = None) -> None:
        self.name = str(spec)
        fixed = {"int8": (8, 8), "int4": (4, 4)}.get(spec.name)
        key, value = fixed or (spec.count("k"), spec.count("v"))
        group = spec.count("group")
        self._roundings = tuple(GroupRounding(b, group, codes) for b in (key, value))

    def encode_layer(self, layer: int, kv: torch.Tensor, stats: ChunkStats) -> bytes:
        """See `Codec`."""
        largest = torch.finfo(kv.dtype).max
        parts = zip(self._roundings, kv.flatten(2).float(), strict=True)
        return b"".join(rounding.encode(part, largest) for rounding, part in parts)

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """See `Codec`."""
        into = out.view(2, out.shape[1], -1)
        rows, channels = into.shape[1:]
        key, value = self._roundings
        split = key.coded_bytes(rows, channels)
        expected = split + value.coded_bytes(rows, channels)
        if len(buffer) != expected:
            raise CorruptRecord(
                f"{self.name}: a layer has {len(buffer)} bytes, expected {expected}"
            )
        key.decode_into(buffer[:split], into[0])
        value.decode_into(buffer[split:], into[1])
