"""Chunks in pages of 8 and of 4 bits: answers, what is reported, and who reads which pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from chunkcache.chunk import SpanKind
from chunkcache.config import EngineSettings
from chunkcache.engine.decoder import ROUNDED_PAGES, DecoderModel
from chunkcache.engine.packed import PackedLayers
from chunkcache.errors import ConfigError
from chunkcache_kernels import Arena, portable

TIGHT = 2e-4
LENGTHS = (24, 9, 30)  # in pages of 8
pytestmark = pytest.mark.parametrize("pages", ["int8", "int4"])


@pytest.fixture(params=["smollm3", "qwen3"])  # one has a layer whose keys have no positions
def model(request: Any, build: Callable[..., DecoderModel]) -> DecoderModel:
    made = build(request.param)
    return made.run_by(PackedLayers(made.hf, made.facts))


def case(bench: Any) -> tuple[Any, Any]:
    chunks = [bench.tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    prompt = bench.prompt(chunks)
    at = [n for n, span in enumerate(prompt.spans) if span.kind is SpanKind.CHUNK]
    return prompt, {n: bench.record(prompt.spans[n].token_ids) for n in at}


def rounding(like: Arena, dtype: torch.dtype) -> Callable[..., None]:
    """Brings chunks to raw pages, with the numbers that pages of another type would hold."""
    shape = like.keys.shape
    other = Arena.empty(*shape[:4], like.page_tokens, dtype=dtype, device=like.keys.device)

    def place(arena: Arena, first: int, kv: torch.Tensor, pages: np.ndarray, angles: Any) -> None:
        portable.place_chunk(other, first, kv, pages, angles)
        for layer in range(first, first + len(kv)):
            keys, values = other.read_rows(layer, pages)
            arena.write_chunk(pages, keys[None], values[None], layer)

    return place


@pytest.mark.parametrize("policy", ["none", "question"])
def test_answers_are_those_of_raw_pages_with_the_same_numbers(
    model: DecoderModel, open_bench: Callable[..., Any], pages: str, policy: str
) -> None:
    ours, twin = open_bench(model, chunk_pages=pages), open_bench(model)
    chunks: Any = twin.engine.chunks
    chunks._place = rounding(twin.engine.pool.chunks, ROUNDED_PAGES[pages])
    chunks._is_exact = False
    prompt, records = case(ours)
    found, wanted = (b.answer(prompt, records, policy, budget=0.3) for b in (ours, twin))
    assert found.token_ids == wanted.token_ids
    assert found.recomputed.tolist() == wanted.recomputed.tolist()
    assert (found.first_logits - wanted.first_logits).abs().max() < TIGHT
    exact = ours.full(prompt)
    assert (found.first_logits - exact.first_logits).abs().max() > 10 * TIGHT, "it is rounded"


def test_no_reused_chunk_is_exact_but_all_rows_repaired_are(
    model: DecoderModel, open_bench: Callable[..., Any], pages: str
) -> None:
    bench = open_bench(model, chunk_pages=pages)
    prompt, records = case(bench)
    reused, strict = (
        bench.answer(prompt, records, "none", exact_only=exact_only, salt=b"%d" % exact_only)
        for exact_only in (False, True)
    )
    for found, is_rounded in ((reused, True), (strict, False)):
        approximate = [s.approximate for s in found.plan.spans if s.span.kind is SpanKind.CHUNK]
        assert approximate == [is_rounded] * 3, "the first one, too: it stands where it was born"
    repaired = bench.answer(prompt, records, "all", salt=b"all")
    for found in (strict, repaired):
        assert (found.first_logits - bench.full(prompt).first_logits).abs().max() < TIGHT


def test_torch_reads_what_the_kernels_of_a_cpu_do_not(
    tiny: DecoderModel, open_bench: Callable[..., Any], pages: str
) -> None:
    with capture_logs() as logs:
        bench = open_bench(tiny, chunk_pages=pages)
    said = [entry["pages"] for entry in logs if entry["event"] == "chunk_pages_read_by_torch"]
    compiled = bench.engine.pool.team is not None
    assert said == (["int4"] if compiled and pages == "int4" else [])
    assert bench.engine.chunks.page_bytes < bench.engine.pool.own.page_bytes / 2


def test_heads_of_an_odd_size_are_refused_where_two_numbers_share_a_byte(
    tiny: DecoderModel, pages: str
) -> None:
    odd = replace(tiny, geometry=replace(tiny.geometry, head_dim=7))
    settings = EngineSettings(chunk_pages=pages)
    if pages == "int8":
        assert odd.new_pool(1, 1 << 16, settings, None).chunks.key_scales is not None
        return
    with pytest.raises(ConfigError, match=r"chunk_pages: got 'int4'.*heads of 7.*Hint"):
        odd.new_pool(1, 1 << 16, settings, None)
