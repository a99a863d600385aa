"""Chunk records made from a number: the same in every process, odd bit patterns included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, KVGeometry

FINGERPRINT = b"model-a"
SMALL = KVGeometry(3, 2, 8, "bfloat16", "rope-test")
ODD = KVGeometry(5, 1, 6, "float32", "rope-θ=1e4")
# quiet and signalling NaNs with payloads, infinities, the two zeros, a denormal
ODD_BITS = (0x7FC1, 0xFFAB, 0x7F81, 0xFF80, 0x7F80, 0x8000, 0x0000, 0x0001)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_key(number: int, num_tokens: int) -> ChunkKey:
    """The key of chunk `number`."""
    ids = tuple((number * 7919 + at * 31) % 50_000 for at in range(num_tokens))
    return ChunkKey.of(
        ids, fingerprint=FINGERPRINT, born_prefix=(1, number), salt=b"salt", adapter=""
    )


def make_record(
    number: int, num_tokens: int = 5, geometry: KVGeometry = SMALL, num_priors: int = 0
) -> ChunkKV:
    """Chunk `number`, every bit of it drawn from its number."""
    draw = np.random.default_rng([number, num_tokens])
    shape = (geometry.num_layers, 2, num_tokens, geometry.num_kv_heads, geometry.head_dim)
    octets = draw.integers(0, 256, (*shape[:-1], geometry.head_dim * geometry.itemsize_bytes))
    kv = torch.from_numpy(octets.astype(np.uint8)).view(_DTYPES[geometry.dtype])
    if geometry.dtype == "bfloat16":
        bits = torch.tensor(np.array(ODD_BITS, np.uint16).view(np.int16))
        kv.view(torch.int16).view(-1)[: len(ODD_BITS)] = bits[: kv.numel()]
    stats = ChunkStats(
        token_inter=draw.random(num_tokens, np.float32),
        token_head=draw.random(num_tokens, np.float32),
        chunk_inter=draw.random(num_priors, np.float32),
        intra=float(draw.random()),
        prior_digests=tuple(draw.bytes(16) for _ in range(num_priors)),
        prior_lengths=tuple(int(n) for n in draw.integers(1, 1000, num_priors)),
    )
    return ChunkKV(make_key(number, num_tokens), geometry, kv, stats)


def colliding_with(record: ChunkKV, number: int) -> ChunkKV:
    """Another chunk, with the digest of `record`."""
    other = make_record(number, record.num_tokens, record.geometry)
    key = ChunkKey(record.key.digest, other.key.token_ids)
    return ChunkKV(key, other.geometry, other.kv, other.stats)


def contents(record: ChunkKV) -> tuple[object, ...]:
    """All of a record as plain values, equal exactly when every bit is."""
    stats = record.stats
    return (
        record.key.digest,
        record.key.token_ids,
        record.geometry,
        str(record.kv.dtype),
        tuple(record.kv.shape),
        record.kv.contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        stats.token_inter.tobytes(),
        stats.token_head.tobytes(),
        stats.chunk_inter.tobytes(),
        stats.intra,
        stats.prior_digests,
        stats.prior_lengths,
    )


def make_finite(number: int, num_tokens: int = 400) -> ChunkKV:
    """Chunk `number` with numbers that every codec codes."""
    made = make_record(number, num_tokens)
    draw = torch.Generator().manual_seed(number)
    return replace(made, kv=torch.randn(made.kv.shape, generator=draw).to(made.kv.dtype))
