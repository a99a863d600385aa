"""The numbers as they are, little-endian, C order: the simple twin of every other codec."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.errors import CorruptRecord

if TYPE_CHECKING:
    from chunkcache.chunk import ChunkStats


class RawCodec:
    """Bit for bit, NaN payloads included. Encoding and decoding are one memory copy each."""

    name = "raw"

    def encode_layer(self, layer: int, kv: torch.Tensor, stats: ChunkStats) -> bytes:
        """See `Codec`."""
        return octets(kv.contiguous()).tobytes()

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """See `Codec`."""
        into = octets(out).reshape(-1)
        if len(buffer) != len(into):
            raise CorruptRecord(f"raw codec: a layer has {len(buffer)} bytes, expected {len(into)}")
        into[:] = np.frombuffer(buffer, np.uint8)


def octets(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a contiguous CPU tensor, not copied: for this codec, what is stored of it."""
    # numpy has no bfloat16; as bytes, NaN payloads stay untouched, too
    seen: np.ndarray = tensor.view(torch.uint8).numpy()
    return seen
