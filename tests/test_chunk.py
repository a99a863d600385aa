"""The nouns: keys that tell everything apart, geometry in bytes, spans that know their end."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.chunk import (
    ChunkKey,
    ChunkKV,
    ChunkStats,
    KVGeometry,
    Rung,
    Span,
    SpanKind,
    content_digest,
    pack_token_ids,
)

token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=8)


# ------------------------------------------------------------------ token ids as bytes


@given(token_ids=token_lists)
@settings(deadline=None, max_examples=100)
def test_token_ids_are_packed_as_little_endian_uint32(token_ids: list[int]) -> None:
    packed = pack_token_ids(token_ids)
    assert packed == struct.pack(f"<{len(token_ids)}I", *token_ids)
    assert packed == pack_token_ids(tuple(token_ids))


@pytest.mark.parametrize("wrong", [-1, 2**32, 2**64])
def test_an_id_that_does_not_fit_is_an_error_and_not_another_id(wrong: int) -> None:
    with pytest.raises(OverflowError):
        pack_token_ids([1, wrong])
    with pytest.raises(OverflowError):
        ChunkKey.of([wrong], fingerprint=b"", born_prefix=[], salt=b"")


# ------------------------------------------------------------------ keys


@st.composite
def key_fields(draw: st.DrawFn) -> dict[str, Any]:
    few = st.lists(st.sampled_from([0, 1, 0x61616161]), max_size=3)
    short = st.sampled_from([b"", b"a", b"aa", b"aaaa"])
    return {
        "token_ids": tuple(draw(few)),
        "fingerprint": draw(short),
        "born_prefix": tuple(draw(few)),
        "salt": draw(short),
        "adapter": draw(st.sampled_from(["", "a", "aaaa"])),
    }


def key_of(fields: dict[str, Any]) -> ChunkKey:
    options = dict(fields)
    return ChunkKey.of(options.pop("token_ids"), **options)


@given(first=key_fields(), second=key_fields())
@settings(deadline=None, max_examples=300)
def test_keys_are_equal_exactly_if_every_field_is(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Also where bytes could move from one field to the next, as in ab|c and a|bc."""
    assert (key_of(first) == key_of(second)) == (first == second)
    assert (key_of(first).digest == key_of(second).digest) == (first == second)
    assert hash(key_of(first)) == hash(key_of(dict(first)))


@pytest.mark.parametrize(
    "changed",
    [
        {"token_ids": (1, 2, 4)}, {"fingerprint": b"other"}, {"born_prefix": (9,)},
        {"salt": b"other"}, {"adapter": "other"},
    ],
)  # fmt: skip
def test_whatever_kv_depends_on_is_part_of_the_key(changed: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "token_ids": (1, 2, 3), "fingerprint": b"f", "born_prefix": (7, 8), "salt": b"s",
        "adapter": "",
    }  # fmt: skip
    assert key_of(base) != key_of({**base, **changed})


def test_of_two_keys_whose_digests_collide_the_token_ids_decide() -> None:
    first, second = ChunkKey(b"d" * 32, (1, 2)), ChunkKey(b"d" * 32, (1, 3))
    assert hash(first) == hash(second)
    assert first != second
    records = {first: "mine"}
    assert second not in records
    assert records[ChunkKey(b"d" * 32, (1, 2))] == "mine"


def test_a_key_is_the_same_in_every_process_and_version() -> None:
    """Records on disk are found by it: if this number changes, `hasher`'s person must too."""
    key = ChunkKey.of([1, 2, 3], fingerprint=b"model", born_prefix=[0], salt=b"tenant")
    assert key.hex == "d117db087fec9b1f0a70ea0edf142c6559a209cd492e53c3acbba0a67e5e5183"
    assert len(key.digest) == 32
    assert key.token_ids == (1, 2, 3)


def test_a_content_digest_names_the_tokens_alone() -> None:
    assert content_digest([1, 2]) == content_digest((1, 2))
    assert content_digest([1, 2]) != content_digest([2, 1])
    assert len(content_digest([])) == 16
    key = ChunkKey.of([1, 2], fingerprint=b"", born_prefix=[], salt=b"")
    assert key.digest[:16] != content_digest([1, 2])


# ------------------------------------------------------------------ geometry and records


@pytest.mark.parametrize(
    ("geometry", "kib"),
    [
        (KVGeometry(30, 3, 64, "bfloat16", "default"), 22.5),  # SmolLM2-135M
        (KVGeometry(28, 4, 128, "bfloat16", "default"), 56),  # Qwen2.5-7B
        (KVGeometry(32, 8, 128, "bfloat16", "llama3"), 128),  # Llama-3-8B
        (KVGeometry(30, 3, 64, "float16", "default"), 22.5),
        (KVGeometry(30, 3, 64, "float32", "default"), 45),
    ],
)
def test_bytes_per_token_of_known_models(geometry: KVGeometry, kib: float) -> None:
    assert geometry.bytes_per_token == kib * 1024
    shape = (geometry.num_layers, 2, 5, geometry.num_kv_heads, geometry.head_dim)
    kv = torch.empty(shape, dtype=getattr(torch, geometry.dtype))
    assert geometry.itemsize_bytes == kv.element_size()
    empty = torch.empty(0).numpy()
    record = ChunkKV(ChunkKey(b"", (1,) * 5), geometry, kv, ChunkStats(empty, empty, empty, 0.0))
    assert record.num_tokens == 5
    assert record.size_bytes == kv.nbytes


def test_rungs_and_kinds_of_span_are_words_that_answers_use() -> None:
    """They are sent to clients as they stand."""
    assert list(Rung) == ["full", "exact", "repaired"]
    assert list(SpanKind) == ["head", "chunk", "history", "question"]


def test_nouns_are_frozen() -> None:
    span = Span(SpanKind.CHUNK, 3, (1, 2))
    key = ChunkKey(b"d", (1,))
    for noun, field in ((span, "start"), (key, "digest")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(noun, field, 0)


def test_a_span_ends_after_its_last_token() -> None:
    span = Span(SpanKind.CHUNK, 3, (7, 7, 7))
    assert (len(span), span.end) == (3, 6)


def test_a_span_has_the_record_of_its_own_tokens_or_of_the_passage_it_is_part_of() -> None:
    assert Span(SpanKind.CHUNK, 3, (7, 8)).record_ids == (7, 8)
    assert Span(SpanKind.CHUNK, 3, (7, 8), None, (1, 7, 8, 9), 1).record_ids == (1, 7, 8, 9)
