"""The header: decoded as encoded, the same bytes in every process, and no changed byte accepted."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, KVGeometry
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.record import checksum, decode_header, encode_header, header_length

if TYPE_CHECKING:
    from types import ModuleType

GOLDEN = """
from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, KVGeometry
from chunkcache.store.record import encode_header
import numpy as np
stats = ChunkStats(
    np.array([0.25, 0.5], np.float32), np.array([0.125, 0.0], np.float32),
    np.array([0.75], np.float32), 1.5, (b"d" * 16,), (77,),
)
key = ChunkKey(bytes(range(32)), (1, 65536))
record = ChunkKV(key, KVGeometry(2, 3, 4, "bfloat16", "rope θ"), None, stats)
golden = encode_header(
    record, fingerprint=b"fp", codec="raw",
    slab_lengths=(96, 97), slab_checksums=(b"a" * 16, b"b" * 16),
)
"""
# changing these bytes makes every store there is unreadable: raise VERSION when they must change
GOLDEN_SHA256 = "152a96d0ef2ecd555d2be4813c9cdc59fa12474d990c35af7957a93f33de9aea"

floats = hnp.arrays(np.float32, st.integers(0, 4), elements=st.floats(width=32))


def floats_of(length: int) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.float32, length, elements=st.floats(width=32))


@st.composite
def records_and_slabs(draw: st.DrawFn) -> tuple[ChunkKV, list[int], list[bytes]]:
    ids = tuple(draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6)))
    layers = draw(st.integers(1, 4))
    priors = draw(st.lists(st.binary(max_size=20), max_size=3))
    stats = ChunkStats(
        token_inter=draw(floats_of(len(ids))),
        token_head=draw(floats_of(len(ids))),
        chunk_inter=draw(floats),
        intra=draw(st.floats()),
        prior_digests=tuple(priors),
        prior_lengths=tuple(draw(st.integers(0, 2**32 - 1)) for _ in priors),
    )
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    heads, dim = draw(st.integers(1, 2**32 - 1)), draw(st.integers(1, 256))
    geometry = KVGeometry(layers, heads, dim, dtype, draw(st.text(max_size=9)))
    key = ChunkKey(draw(st.binary(min_size=32, max_size=32)), ids)
    lengths = [draw(st.integers(0, 2**40)) for _ in range(layers)]
    checksums = [draw(st.binary(min_size=16, max_size=16)) for _ in range(layers)]
    return ChunkKV(key, geometry, torch.empty(0), stats), lengths, checksums


@settings(max_examples=100, deadline=None)
@given(made=records_and_slabs(), fingerprint=st.binary(max_size=40), codec=st.text(max_size=9))
def test_a_header_decodes_to_what_was_encoded(
    made: tuple[ChunkKV, list[int], list[bytes]], fingerprint: bytes, codec: str
) -> None:
    record, lengths, checksums = made
    encoded = encode_header(
        record, fingerprint=fingerprint, codec=codec,
        slab_lengths=lengths, slab_checksums=checksums,
    )  # fmt: skip
    header = decode_header(encoded)
    assert header.digest == record.key.digest
    assert header.fingerprint == fingerprint and header.codec == codec
    assert np.frombuffer(header.packed_token_ids, "<u4").tolist() == list(record.key.token_ids)
    assert header.num_tokens == record.num_tokens
    assert header.geometry == record.geometry
    assert list(header.slab_lengths) == lengths and list(header.slab_checksums) == checksums
    for name in ("token_inter", "token_head", "chunk_inter"):
        field: np.ndarray = getattr(header.stats, name)
        assert field.dtype == np.float32
        assert field.tobytes() == getattr(record.stats, name).tobytes()
    assert np.float64(header.stats.intra).tobytes() == np.float64(record.stats.intra).tobytes()
    assert header.stats.prior_digests == record.stats.prior_digests
    assert header.stats.prior_lengths == record.stats.prior_lengths
    assert header_length(encoded + b"\0" * 9) == len(encoded)


def encoded_sample(records: ModuleType) -> bytes:
    record = records.make_record(3, num_tokens=4, num_priors=2)
    return encode_header(
        record, fingerprint=b"fp", codec="raw",
        slab_lengths=[9] * 3, slab_checksums=[checksum(b"x")] * 3,
    )  # fmt: skip


def test_every_single_byte_corruption_of_a_header_is_rejected(records: ModuleType) -> None:
    encoded = encoded_sample(records)
    for at in range(len(encoded)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(encoded)
            damaged[at] ^= flip
            with pytest.raises(CorruptRecord):
                decode_header(bytes(damaged))


def test_every_truncation_and_every_added_byte_is_rejected(records: ModuleType) -> None:
    encoded = encoded_sample(records)
    for length in range(len(encoded)):
        with pytest.raises(CorruptRecord):
            decode_header(encoded[:length])
        if length < len(encoded):
            with pytest.raises(CorruptRecord):
                header_length(encoded[:length])
    with pytest.raises(CorruptRecord):
        decode_header(encoded + b"\0")


def resealed(encoded: bytes, change: bytes, to: bytes) -> bytes:
    """The header with bytes changed and a fitting checksum: what a bug, not decay, would write."""
    body = encoded[:-16]
    assert body.count(change) == 1 and len(change) == len(to)
    body = body.replace(change, to)
    return body + checksum(body)


def test_a_sealed_header_that_makes_no_sense_is_rejected(records: ModuleType) -> None:
    encoded = encoded_sample(records)
    for change, to in [
        (b"CHUNKKV\0", b"CHUNKKW\0"),
        (b"CHUNKKV\0\x01", b"CHUNKKV\0\x02"),  # another version
        (b"bfloat16", b"bfloat17"),
        (b"rope-test", b"rope-tes\xff"),  # not UTF-8
        (b"\x03\0\0\0\x02\0\0\0\x08\0\0\0", b"\x04\0\0\0\x02\0\0\0\x08\0\0\0"),  # layers
        (b"\x09\0\0\0rope-test", b"\xff\0\0\xffrope-test"),  # a field past the end
    ]:
        with pytest.raises(CorruptRecord):
            decode_header(resealed(encoded, change, to))


def test_a_record_that_contradicts_itself_is_not_encoded(records: ModuleType) -> None:
    record = records.make_record(1, num_tokens=4)
    short = replace(record, stats=replace(record.stats, token_head=np.zeros(3, np.float32)))
    with pytest.raises(StoreError, match="cannot be stored"):
        encode_header(
            short, fingerprint=b"fp", codec="raw",
            slab_lengths=[9] * 3, slab_checksums=[bytes(16)] * 3,
        )  # fmt: skip
    with pytest.raises(StoreError, match="cannot be stored"):
        encode_header(
            record, fingerprint=b"fp", codec="raw",
            slab_lengths=[9] * 2, slab_checksums=[bytes(16)] * 2,
        )  # fmt: skip


def test_the_header_is_the_same_bytes_in_every_interpreter() -> None:
    script = GOLDEN + "import sys; sys.stdout.buffer.write(golden)"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert hashlib.sha256(outputs[0]).hexdigest() == GOLDEN_SHA256
