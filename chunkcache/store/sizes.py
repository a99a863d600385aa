"""How large records will be on disk, told by their tokens before they are computed."""

from __future__ import annotations

import math
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.chunk import USUAL_TERMS, ChunkKey, ChunkKV, ChunkStats
from chunkcache.store.frame import frame_of_layers
from chunkcache.store.layout import entry_of, padded
from chunkcache.store.reader import DTYPES

if TYPE_CHECKING:
    from chunkcache.chunk import KVGeometry
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.layout import MetaEntry


class RecordSizes:
    """Sizes by tokens, each told from one record of random numbers that is coded and let go.

    Exact for codecs that give every number as many bits. Others make less of real numbers than of
    random ones: theirs are corrected by what real records took beside what had been foretold.
    Threads may share it: what two of them find out at once is the same.
    """

    def __init__(self, codec: Codec, geometry: KVGeometry | None, fingerprint: bytes) -> None:
        self._codec = codec
        self._geometry = geometry
        self._fingerprint = fingerprint
        self._random: dict[int, int] = {}  # bytes of a record of random numbers, by tokens
        self._worst_share = 0.0  # of what was foretold, that a real record took

    def of(self, num_tokens: int) -> int | None:
        """Bytes on disk of such a record; None: the model's geometry is not known.

        Cost: one is coded the first time that so many tokens are asked about.
        """
        if self._geometry is None:
            return None
        known = self._random.get(num_tokens)
        if known is None:
            known = self._random[num_tokens] = self._coded_bytes(self._geometry, num_tokens)
        return math.ceil(known * (self._worst_share or 1.0))

    def saw(self, entry: MetaEntry) -> None:
        """So large is a real one."""
        known = self._random.get(entry.num_tokens)
        if known is not None:
            self._worst_share = max(self._worst_share, entry.size_bytes / known)

    def _coded_bytes(self, geometry: KVGeometry, num_tokens: int) -> int:
        shape = (2, num_tokens, geometry.num_kv_heads, geometry.head_dim)
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(num_tokens))
        layer = numbers.to(DTYPES[geometry.dtype])
        mass = np.full(num_tokens, 0.5, np.float32)
        record = ChunkKV(
            ChunkKey(bytes(32), (0,) * num_tokens), geometry, layer,
            ChunkStats(mass, mass, np.zeros(0, np.float32), 0.0),
        )  # fmt: skip
        frame = frame_of_layers(
            record, repeat(layer, geometry.num_layers), self._codec, self._fingerprint,
            padded=padded,
        )  # fmt: skip
        name = self._codec.name
        return entry_of(frame, num_tokens, self._fingerprint, name, USUAL_TERMS).size_bytes
