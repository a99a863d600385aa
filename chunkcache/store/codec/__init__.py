"""How the KV of a layer becomes bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from chunkcache.codec_spec import CODEC_NAMES, CodecSpec, is_lossless, parse_codec
from chunkcache.errors import ConfigError
from chunkcache.store.codec.basis import BasisCodec
from chunkcache.store.codec.bits import BitsCodec
from chunkcache.store.codec.compiled import open_codes
from chunkcache.store.codec.gear import GearCodec
from chunkcache.store.codec.joint import JointCodec
from chunkcache.store.codec.layers import decode_layers, encode_layers
from chunkcache.store.codec.mikv import MikvCodec
from chunkcache.store.codec.raw import RawCodec
from chunkcache.store.codec.zstd import ZstdCodec

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.chunk import ChunkKV
    from chunkcache.store.codec.base import Codec, LayerCodec

__all__ = ["CODEC_NAMES", "codec_named", "read_through"]


def codec_named(name: str, bases: Path | None = None, cache: Path | None = None) -> Codec:
    """The codec with that name, parameters left out at their defaults.

    Args:
        bases: the folder of fitted bases, of which `basis` and `joint` need one.
        cache: where what is compiled for it is kept; in the user's cache directory unless given.

    Raises:
        ConfigError: there is none, or a parameter is wrong.
    """
    try:
        spec = parse_codec(name)
    except ValueError as error:
        raise ConfigError(
            f"store.codec: got {name[:200]!r}. {error}. Hint: docs/concepts/store.md lists them."
        ) from error
    if spec.name == "joint":
        return JointCodec(spec, _given(bases, spec))
    return _made(spec, bases, cache)


def read_through(codec: Codec, record: ChunkKV) -> ChunkKV:
    """The record as it comes back from a store with that codec. Raises `StoreError`."""
    kv = torch.empty(record.kv.shape, dtype=record.kv.dtype)
    coded = encode_layers(codec, record.kv, record.stats)
    decode_layers(codec, [memoryview(slab) for slab in coded], kv)
    rounded_by = record.rounded_by if is_lossless(codec.name) else codec.name
    return replace(record, kv=kv, rounded_by=rounded_by)


def _made(spec: CodecSpec, bases: Path | None, cache: Path | None) -> LayerCodec:
    if spec.over is not None:
        return ZstdCodec(_made(spec.over, bases, cache), str(spec), spec.count("level"))
    if spec.name == RawCodec.name:
        return RawCodec()
    codes = open_codes(cache)
    if spec.name == "basis":
        return BasisCodec(spec, _given(bases, spec), codes)
    if spec.name == "gear":
        return GearCodec(spec, codes)
    if spec.name == "mikv":
        return MikvCodec(spec, codes)
    return BitsCodec(spec, codes)


def _given(bases: Path | None, spec: CodecSpec) -> Path:
    if bases is None:
        raise ConfigError(f"store.codec: got {spec}, and no folder of bases. Hint: int4")
    return bases
