"""Layers through any codec: one by one, or as many at a time as it codes together."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from chunkcache.store.codec.joint import JointCodec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from chunkcache.chunk import ChunkStats
    from chunkcache.store.codec.base import Codec


def encode_layers(
    codec: Codec, layers: Iterable[torch.Tensor], stats: ChunkStats
) -> Iterator[bytes]:
    """The slabs of a record, one a layer.

    Args:
        layers: `[2, num_tokens, num_kv_heads, head_dim]`, one after the other; each is coded, or
            copied, before the next one is asked for.

    Raises:
        StoreError: there is a number in it that the codec cannot code.
    """
    if not isinstance(codec, JointCodec):
        for number, kv in enumerate(layers):
            yield codec.encode_layer(number, kv, stats)
        return
    copies, first = (kv.clone() for kv in layers), 0
    while group := list(islice(copies, codec.layers_together)):
        yield from codec.encode_layers(first, torch.stack(group))
        first += len(group)


def decode_layers(codec: Codec, slabs: Sequence[memoryview], out: torch.Tensor) -> None:
    """Decode a record into `out`, all its layers, from one slab of each.

    Raises:
        CorruptRecord: they are not what this codec makes.
    """
    if isinstance(codec, JointCodec):
        codec.decode_layers(0, slabs, out)
        return
    for number, (slab, kv) in enumerate(zip(slabs, out, strict=True)):
        codec.decode_layer(number, slab, kv)
