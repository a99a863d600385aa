"""How the KV of a layer becomes bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from chunkcache.codec_spec import CODEC_NAMES, CodecSpec, is_lossless, parse_codec
from chunkcache.errors import ConfigError
from chunkcache.store.codec.basis import BasisCodec, of_another_model
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

    from chunkcache.chunk import ChunkKV, KVGeometry
    from chunkcache.store.codec.base import Codec, LayerCodec

__all__ = ["CODEC_NAMES", "codec_named", "read_through"]


def codec_named(
    name: str,
    bases: Path | None = None,
    cache: Path | None = None,
    geometry: KVGeometry | None = None,
) -> Codec:
    """The codec with that name, parameters left out at their defaults.

    Args:
        bases: the folder of fitted bases, of which `basis` and `joint` need one.
        cache: where what is compiled for it is kept; in the user's cache directory unless given.
        geometry: of the model, where it is known: a basis of another one is refused.

    Raises:
        ConfigError: there is none, a parameter is wrong, or its basis is of another model.
    """
    try:
        spec = parse_codec(name)
    except ValueError as error:
        raise ConfigError(
            f"store.codec: got {name[:200]!r}. {error}. Hint: docs/concepts/store.md lists them."
        ) from error
    if spec.name == "joint":
        joint = JointCodec(spec, _given(bases, spec), open_codes(cache))
        _check_model(joint, geometry)
        return joint
    return _made(spec, bases, cache, geometry)


def read_through(codec: Codec, record: ChunkKV) -> ChunkKV:
    """The record as it comes back from a store with that codec. Raises `StoreError`."""
    kv = torch.empty(record.kv.shape, dtype=record.kv.dtype)
    coded = encode_layers(codec, record.kv, record.stats)
    decode_layers(codec, [memoryview(slab) for slab in coded], kv)
    rounded_by = record.rounded_by if is_lossless(codec.name) else codec.name
    return replace(record, kv=kv, rounded_by=rounded_by)


def _made(
    spec: CodecSpec, bases: Path | None, cache: Path | None, geometry: KVGeometry | None
) -> LayerCodec:
    if spec.over is not None:
        over = _made(spec.over, bases, cache, geometry)
        return ZstdCodec(over, str(spec), spec.count("level"))
    if spec.name == RawCodec.name:
        return RawCodec()
    codes = open_codes(cache)
    if spec.name == "basis":
        basis = BasisCodec(spec, _given(bases, spec), codes)
        _check_model(basis, geometry)
        return basis
    if spec.name == "gear":
        return GearCodec(spec, codes)
    if spec.name == "mikv":
        return MikvCodec(spec, codes)
    return BitsCodec(spec, codes)


def _check_model(codec: BasisCodec | JointCodec, geometry: KVGeometry | None) -> None:
    if geometry is None:
        return
    if codec.fitted_to != (geometry.num_layers, geometry.num_kv_heads * geometry.head_dim):
        raise ConfigError(
            f"store.codec or store.cold_codec: {of_another_model(codec.name, codec.fitted_to)}"
        )


def _given(bases: Path | None, spec: CodecSpec) -> Path:
    if bases is None:
        raise ConfigError(f"store.codec: got {spec}, and no folder of bases. Hint: int4")
    return bases
