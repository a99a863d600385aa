"""Chunk records: what they hold, and the statistics that must add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from chunkcache.chunk import content_digest
from chunkcache.engine.decoder import DecoderModel


@pytest.mark.parametrize("lengths", [[20], [1], [9, 20], [1, 1, 1], [30, 7, 55]])
def test_attention_is_conserved(
    build: Callable[..., DecoderModel], open_bench: Callable[..., Any], lengths: list[int]
) -> None:
    """Σ inter + head + intra = tokens, for the chunk and for each token (research: §1.2, 6)."""
    bench = open_bench(build("llama"))
    *prior, ids = [bench.tokens(n, seed) for seed, n in enumerate(lengths)]
    stats = bench.record(ids, prior=prior).stats
    count = len(ids)
    total = stats.chunk_inter.sum() + stats.token_head.sum() + stats.intra
    assert total == pytest.approx(count, rel=1e-5)
    assert stats.chunk_inter.sum() == pytest.approx(stats.token_inter.sum(), rel=1e-5)
    outside = stats.token_inter + stats.token_head
    assert np.all(outside > 0) and np.all(outside < 1 + 1e-5)
    assert stats.prior_digests == tuple(content_digest(p) for p in prior)
    assert stats.prior_lengths == tuple(map(len, prior))
    assert len(stats.chunk_inter) == len(prior)


def test_the_first_layer_knows_no_context(bench: Any) -> None:
    """Layer 0 K before RoPE and V depend on the token alone, whatever came before."""
    ids = bench.tokens(25, 1)
    alone = bench.record(ids)
    after = bench.record(ids, prior=[bench.tokens(30, 2)])
    assert torch.allclose(alone.kv[0], after.kv[0], atol=1e-6)
    assert not torch.allclose(alone.kv[1], after.kv[1], atol=1e-3)


def test_a_record_does_not_depend_on_step_size_or_company(
    tiny: DecoderModel, open_bench: Callable[..., Any]
) -> None:
    small, large = open_bench(tiny, step_tokens=16), open_bench(tiny, step_tokens=512)
    ids = large.tokens(70, 1)
    crowd = [large.prefill(large.tokens(n, n)) for n in (5, 60)]
    assert all(r.future.done() for r in crowd)
    one, other = small.record(ids), large.record(ids)
    assert torch.allclose(one.kv, other.kv, atol=1e-4)
    assert np.allclose(one.stats.token_head, other.stats.token_head, atol=1e-5)


def test_the_head_is_shared_between_prefills_but_the_chunks_pages_are_not(bench: Any) -> None:
    ids = bench.tokens(40, 1)
    first = bench.prefill(ids)
    second = bench.prefill(ids)
    bench.wait_until_idle()
    assert first.pages == [] and second.pages == []
    assert second.exact_tokens == len(bench.head)
    assert torch.allclose(first.future.result().kv, second.future.result().kv, atol=1e-4)
    shared = bench.engine.prefix.match(b"chunks", [*bench.head, *ids])
    assert len(shared) == len(bench.head) // bench.engine.pages.page_tokens
    bench.engine.pages.release(shared)


def test_a_chunk_is_captured_whole_where_an_answer_has_shared_its_pages(bench: Any) -> None:
    """Rows taken from the prefix cache would be missing from the record."""
    ids = bench.tokens(70, 1)
    bench.answer(bench.prompt([ids]), {}, exact_only=True, salt=b"chunks")
    bench.wait_until_idle()
    shared = bench.engine.prefix.match(b"chunks", [*bench.head, *ids])
    bench.engine.pages.release(shared)
    assert len(shared) * bench.engine.pages.page_tokens > len(bench.head), "nothing to be taken"
    assert torch.allclose(bench.record(ids).kv, bench.record(ids, salt=b"other").kv, atol=1e-4)


def test_records_own_their_memory(bench: Any) -> None:
    record = bench.record(bench.tokens(10, 1))
    assert record.kv.is_contiguous()
    assert record.kv.untyped_storage().nbytes() == record.size_bytes
    before = record.kv.clone()
    bench.full(bench.prompt([bench.tokens(300, 5)]))
    assert torch.equal(record.kv, before)


def test_a_failed_prefill_says_so(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderModel, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(Exception, match="division by zero"):
        bench.record(bench.tokens(10, 1))
