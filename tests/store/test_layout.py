"""Keys, padding, and entries of `meta`."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import CorruptRecord
from chunkcache.store.layout import (
    PAGE_BYTES,
    MetaEntry,
    header_key,
    padded,
    pages_bytes,
    slab_key,
    stored_length,
)

entries = st.builds(
    MetaEntry,
    size_bytes=st.integers(0, 2**64 - 1),
    num_tokens=st.integers(0, 2**32 - 1),
    created_ns=st.integers(0, 2**64 - 1),
    fingerprint=st.binary(max_size=64),
    codec=st.text(max_size=12),
    terms=st.builds(
        Terms,
        tenant=st.text(max_size=12),
        priority=st.integers(-128, 127),
        retention=st.sampled_from(Retention),
        expires_s=st.floats(allow_nan=False),
    ),
)


@settings(max_examples=100, deadline=None)
@given(entry=entries)
def test_an_entry_unpacks_to_what_was_packed(entry: MetaEntry) -> None:
    assert MetaEntry.unpack(entry.pack()) == entry


def test_every_single_byte_corruption_of_an_entry_is_rejected() -> None:
    terms = Terms("tenant", 1, Retention.WARMED, 1e9)
    packed = MetaEntry(8192, 5, 123, b"fingerprint", "raw", terms).pack()
    for at in range(len(packed)):
        damaged = bytearray(packed)
        damaged[at] ^= 0x40
        with pytest.raises(CorruptRecord):
            MetaEntry.unpack(bytes(damaged))
    for length in range(len(packed)):
        with pytest.raises(CorruptRecord):
            MetaEntry.unpack(packed[:length])


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, 3 * PAGE_BYTES))
def test_padding_fills_whole_pages_and_loses_nothing(length: int) -> None:
    value = b"\x01" * length
    stored = padded(value)
    assert stored[:length] == value and not any(stored[length:])
    assert len(stored) == stored_length(length) == stored_length(len(stored))
    assert pages_bytes(len(stored)) == len(stored) + 16 == pages_bytes(length)
    assert pages_bytes(length) % PAGE_BYTES == 0
    assert len(stored) - length < PAGE_BYTES, "no page too many"


def test_a_record_s_keys_lie_together_layers_in_order_and_the_header_last() -> None:
    digests = [bytes([n]) * 32 for n in (1, 2)]
    keys = [key for d in digests for key in (*(slab_key(d, n) for n in range(300)), header_key(d))]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_entries_differ_when_any_field_does() -> None:
    entry = MetaEntry(4096, 5, 123, b"fp", "raw")
    others = [
        replace(entry, size_bytes=8192), replace(entry, num_tokens=6),
        replace(entry, created_ns=1), replace(entry, fingerprint=b"f", codec="praw"),
    ]  # fmt: skip
    assert len({each.pack() for each in (entry, *others)}) == 5


def test_an_entry_written_before_there_were_terms_has_the_usual_ones() -> None:
    body = struct.pack("<QIQHH", 4096, 5, 123, 2, 3) + b"fpraw"
    entry = MetaEntry.unpack(body + xxhash.xxh3_64_digest(body))
    assert entry == MetaEntry(4096, 5, 123, b"fp", "raw") and entry.terms == Terms()
