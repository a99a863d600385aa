"""A chunk that was read through a lossy codec is never called exact; one just computed still is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chunkcache import ChunkCache
from chunkcache.chunk import Rung
from chunkcache.protocol import SpanReport
from chunkcache.service.upkeep import find_garbage
from chunkcache.store.recompress import Recompressor

INT4 = "int4(group=32)"
TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " * 2 for i in range(3)]


@pytest.fixture
def restarted(open_cache: Callable[..., ChunkCache]) -> Callable[..., ChunkCache]:
    """A cache that has the chunks of `TEXTS` on disk only, as it coded them."""

    def make(codec: str) -> ChunkCache:
        first = open_cache(store={"codec": codec})
        first.ask("why?", documents=TEXTS)
        first.close()
        return open_cache(store={"codec": codec})

    return make


@pytest.fixture
def rounding(restarted: Callable[..., ChunkCache]) -> ChunkCache:
    return restarted("int4")


def chunks_of(cache: ChunkCache, **wishes: object) -> list[SpanReport]:
    report = cache.ask("why?", documents=TEXTS, **wishes).report
    return [span for span in report.spans if span.kind == "chunk"]


def test_what_was_just_computed_is_as_exact_as_without_a_codec(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(store={"codec": "int4"})
    for _ in range(2):  # computed, then on the device; born after the head, and there again
        first = chunks_of(cache, policy="none")[0]
        assert (first.rung, first.codec) == (Rung.EXACT, None)


def test_what_comes_through_a_lossy_codec_is_repaired_and_its_codec_named(
    rounding: ChunkCache,
) -> None:
    for tier in ("disk", "host"):  # brought up, then found on the device
        spans = chunks_of(rounding, policy="none")
        assert [(s.tier, s.rung, s.codec) for s in spans] == [(tier, Rung.REPAIRED, INT4)] * 3


def test_a_rounded_chunk_never_enters_the_exact_prefix(rounding: ChunkCache) -> None:
    for _ in range(2):
        report = rounding.ask("why?", documents=TEXTS, policy="none").report
        head = report.spans[0].tokens
        assert sum(s.reused for s in report.spans if s.tier == "prefix") <= head
        assert report.rung is Rung.REPAIRED
    exact = rounding.ask("why?", documents=TEXTS, mode="exact").report
    assert exact.rung is not Rung.REPAIRED
    assert all(span.codec is None and span.tier != "host" for span in exact.spans)


def test_rows_that_were_all_recomputed_came_through_no_codec(rounding: ChunkCache) -> None:
    some = chunks_of(rounding, policy="first_k", budget=0.2)
    assert {(s.rung, s.codec, s.recomputed > 0) for s in some} == {(Rung.REPAIRED, INT4, True)}
    spans = chunks_of(rounding, policy="all")
    assert [(s.rung, s.codec) for s in spans] == [(Rung.FULL, None)] * 3


@pytest.mark.parametrize("pages", ["int8", "int4"])
def test_pages_that_round_make_every_reused_chunk_repaired(
    open_cache: Callable[..., ChunkCache], pages: str
) -> None:
    cache = open_cache(engine={"chunk_pages": pages})
    for _ in range(2):  # computed, then on the device
        spans = chunks_of(cache, policy="none")
        assert [(s.rung, s.codec) for s in spans] == [(Rung.REPAIRED, None)] * 3
    assert {s.rung for s in chunks_of(cache, policy="all")} == {Rung.FULL}
    exact = cache.ask("why?", documents=TEXTS, mode="exact").report
    assert exact.rung is not Rung.REPAIRED


def test_lossless_codecs_change_nothing_in_reports(
    restarted: Callable[..., ChunkCache],
) -> None:
    first, *others = chunks_of(restarted("zstd"), policy="none")
    assert (first.tier, first.rung, first.codec) == ("disk", Rung.EXACT, None)
    assert {s.codec for s in others} == {None}


def test_what_was_recompressed_while_cold_is_repaired_and_its_codec_named(
    open_cache: Callable[..., ChunkCache],
) -> None:
    store = {"cold_codec": "int4", "cold_after_s": 0, "cold_above": 0}
    long = [text * 4 for text in TEXTS]
    first = open_cache(store=store, recompresses=True)
    kept = first.ask("why?", documents=long, policy="none").report
    first.runtime.store.flush()
    (job,) = first.runtime.store.jobs
    assert isinstance(job, Recompressor)
    job.close()  # from here on by hand
    stored = len(list(first.runtime.store.tiers[-1].scan()))
    for _ in range(stored):
        job.step()
    again = first.ask("why?", documents=long, policy="none").report
    assert all(span.codec is None for span in [*kept.spans, *again.spans]), "exact on the device"
    first.close()
    second = open_cache(store=store)
    assert second.runtime.store.jobs == (), "a session knows only of its own uses"
    spans = [s for s in second.ask("why?", documents=long, policy="none").report.spans
             if s.kind == "chunk"]  # fmt: skip
    assert {(s.tier, s.rung, s.codec) for s in spans} == {("disk", Rung.REPAIRED, INT4)}
    exact = second.ask("why?", documents=long, mode="exact").report
    assert exact.rung is not Rung.REPAIRED and all(s.codec is None for s in exact.spans)
    second.close()
    assert "other codec" not in find_garbage(second.settings)
    assert len(find_garbage(open_cache().settings)["other codec"]) == stored
