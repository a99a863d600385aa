"""Chunks that come up from LMDB while the prompt runs: the same answers, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import Metric

from chunkcache import ChunkCache
from chunkcache.chunk import Rung
from chunkcache.errors import CorruptRecord, ShuttingDown
from chunkcache.protocol import AnswerFinished
from chunkcache.service import finder
from chunkcache.service.asking import Measure
from chunkcache.service.library import DEFAULT, PUBLIC
from chunkcache.service.wishes import answer_request
from chunkcache.store import slab_reader
from chunkcache.store.cost import CostModel, LoadPlan, Planned, Rows
from chunkcache.store.disk import DiskTier
from chunkcache.store.leased import LeasedRecord
from chunkcache.store.slab_file import SlabFile

TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " * 2 for i in range(4)]
MEASURE = Measure(takes_no_prefix=True, leaves_no_prefix=True)


def asked(
    cache: ChunkCache, texts: list[str], **wishes: Any
) -> tuple[AnswerFinished, torch.Tensor]:
    """The answer over the texts and the logits of its first token; no prefix is shared."""
    wishes = {"documents": texts, "max_tokens": 2, "budget": 0.3, **wishes}
    handle = cache.start(answer_request("why?", wishes), measure=MEASURE)
    answer = [event for event in handle.events() if isinstance(event, AnswerFinished)][-1]
    assert handle.outcome is not None
    return answer, handle.outcome.first_logits


def spans(answer: AnswerFinished, field: str) -> list[Any]:
    return [getattr(s, field) for s in answer.report.spans if s.kind == "chunk"]


def counted(cache: ChunkCache, name: str) -> float:
    found: list[Metric] = list(cache.metrics.registry.collect())
    return sum(s.value for m in found for s in m.samples if s.name == f"chunkcache_{name}")


@pytest.fixture
def always_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model computes a passage sooner than a disk gives it."""

    def choose(_: CostModel, chunks: list[Any], *__: Any) -> LoadPlan:
        return LoadPlan((True,) * len(chunks))

    monkeypatch.setattr(CostModel, "choose", choose)
    monkeypatch.setattr(CostModel, "pays", lambda *_: True)


@pytest.fixture
def stored(cache: ChunkCache) -> ChunkCache:
    """A cache whose passages are in LMDB and nowhere else."""
    asked(cache, TEXTS)
    forget(cache)
    return cache


def forget(cache: ChunkCache) -> None:
    cache.runtime.store.flush()
    cache.runtime.engine.chunks.clear()


@pytest.mark.usefixtures("always_read")
def test_layers_come_up_by_the_compiled_reader(
    stored: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slab_reader(stored.runtime.model.kernel_cache) is None:
        pytest.skip("nothing can be compiled here")
    monkeypatch.setattr(SlabFile, "layers", lambda *_: pytest.fail("Python read a layer"))
    answer, _ = asked(stored, TEXTS)
    assert set(spans(answer, "tier")) == {"disk"}


@pytest.mark.usefixtures("always_read")
@pytest.mark.parametrize("policy", ["none", "first_k", "question", "deviation", "gradual"])
def test_answers_from_lmdb_are_those_from_memory_bit_by_bit(
    stored: ChunkCache, policy: str
) -> None:
    for texts in (TEXTS, TEXTS[::-1], [TEXTS[2], TEXTS[2], TEXTS[0]]):
        cold, first = asked(stored, texts, policy=policy)
        assert set(spans(cold, "tier")) == {"disk"}
        warm, again = asked(stored, texts, policy=policy)
        assert set(spans(warm, "tier")) == {"host"}
        assert torch.equal(first, again) and cold.text == warm.text
        forget(stored)
    assert stored.runtime.engine.chunks.leased == 0


@pytest.mark.usefixtures("always_read")
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_layer_that_turns_out_corrupt_makes_the_chunk_a_miss(
    stored: ChunkCache, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """Its rows are computed within the prompt; the record is dropped and made again."""
    layers = stored.runtime.model.geometry.num_layers
    broken = stored.runtime.key(_ids(stored, 1), stored._salt("public"))
    true, dropped = DiskTier.read_slabs, []

    def read_slabs(of: DiskTier, record: LeasedRecord, first: int, last: int, out: Any) -> None:
        if record.key == broken and first <= layer % layers < last:
            of._lender.drop_corrupt(record.key.digest, record.packed_entry)
            dropped.append(record.key)
            raise CorruptRecord("a bit has flipped")
        true(of, record, first, last, out)

    with monkeypatch.context() as patch:
        patch.setattr(DiskTier, "read_slabs", read_slabs)
        answer, _ = asked(stored, TEXTS)
    assert dropped == [broken]
    assert spans(answer, "miss") == [None, "corrupt", None, None]
    assert spans(answer, "tier") == ["disk", None, "disk", "disk"]
    assert answer.report.spans[2].rung is Rung.FULL and answer.report.spans[2].reused == 0
    report = answer.report
    told = report.reused_tokens + report.recomputed_tokens + report.computed_tokens
    assert told == report.prompt_tokens
    assert counted(stored, "store_errors_total") == 1
    again, _ = asked(stored, TEXTS)
    assert spans(again, "miss") == [None, "absent", None, None]
    forget(stored)
    assert set(spans(asked(stored, TEXTS)[0], "tier")) == {"disk"}
    assert stored.runtime.engine.chunks.leased == 0


@pytest.mark.usefixtures("always_read")
def test_a_load_that_lost_a_record_is_not_measured(
    stored: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seconds are those of records whose bytes it has not brought."""
    broken = stored.runtime.key(_ids(stored, 1), stored._salt("public"))
    true, measured = DiskTier.read_slabs, []
    cost = stored.runtime.store.cost
    monkeypatch.setattr(cost, "observe_load", lambda *what, **_: measured.append(what))

    def read_slabs(of: DiskTier, record: LeasedRecord, *where: Any) -> None:
        if record.key == broken:
            raise CorruptRecord("a bit has flipped")
        true(of, record, *where)

    monkeypatch.setattr(DiskTier, "read_slabs", read_slabs)
    answer, _ = asked(stored, TEXTS)
    assert spans(answer, "tier") == ["disk", None, "disk", "disk"]
    stored.runtime.engine.loader.close()  # what is measured at the end of a load is there now
    assert measured == []


@pytest.mark.usefixtures("always_read")
def test_a_load_is_measured_from_before_its_records_are_opened(
    stored: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes whole, from another machine, has come by then: it is the load."""
    now, measured = [100.0], list[float]()
    store, true = stored.runtime.store, stored.runtime.store.open_many

    def open_many(*which: Any) -> Any:
        now[0] += 5.0
        return true(*which)

    monkeypatch.setattr(store, "open_many", open_many)
    monkeypatch.setattr(finder, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(stored.runtime.engine.loader, "_clock", lambda: now[0])
    monkeypatch.setattr(
        store.cost, "observe_load", lambda _, __, took, **___: measured.append(took)
    )
    assert set(spans(asked(stored, TEXTS)[0], "tier")) == {"disk"}
    stored.runtime.engine.loader.close()
    assert measured == [5.0]


def _ids(cache: ChunkCache, number: int) -> tuple[int, ...]:
    handle = cache.start(answer_request("why?", {"documents": TEXTS, "mode": "full"}))
    list(handle.events())
    return handle.prompt.spans[1 + number].record_ids


@pytest.mark.usefixtures("always_read")
def test_what_cannot_be_computed_leaves_no_lease(
    stored: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: Any) -> Any:
        raise ShuttingDown("not now")

    monkeypatch.setattr(stored.runtime, "compute", compute)
    with pytest.raises(ShuttingDown):
        asked(stored, [*TEXTS, "another"])
    stored.runtime.engine.loader.close()
    assert stored.runtime.engine.chunks.leased == 0


def test_a_tier_that_loses_is_not_read(stored: ChunkCache) -> None:
    cost = stored.runtime.store.cost
    for _ in range(40):
        cost.observe_load("disk", 1, 1000.0, codec="raw")
        cost.observe_prefill(10_000, 10_000, 0.001)
    answer, _ = asked(stored, TEXTS)
    assert spans(answer, "miss") == ["slower"] * 4 and spans(answer, "tier") == [None] * 4
    assert answer.report.timings.planned_ms is not None
    assert counted(stored, "planned_ratio_count") == 1


def test_what_loads_and_passes_take_is_measured(stored: ChunkCache) -> None:
    cost = stored.runtime.store.cost
    asked(stored, TEXTS)
    stored.runtime.engine.loader.close()  # what is measured at the end of a load is there now
    assert cost.load_s("disk", 1000, "raw") is not None
    cost.observe_prefill(100, 1000, 0.1)
    before = cost.compute_s(Rows(100, 1000))
    answer, _ = asked(stored, TEXTS)  # from memory: only the rows count
    assert answer.report.timings.planned_ms is not None
    assert cost.compute_s(Rows(100, 1000)) != before


def test_what_loading_beside_a_pass_takes_is_measured(
    stored: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts all of whose chunks came up; where some were computed, nothing can be told."""
    seen: list[tuple[Planned, float]] = []
    cost = stored.runtime.store.cost
    monkeypatch.setattr(cost, "observe_overlap", lambda *what: seen.append(what))
    cost.observe_load("disk", 1 << 20, 1e-3, codec="raw")
    cost.observe_prefill(100, 1000, 0.1)
    asked(stored, [*TEXTS, "another"])
    assert seen == []
    forget(stored)
    answer, _ = asked(stored, TEXTS)
    assert spans(answer, "tier") == ["disk"] * 4
    ((planned, seconds),) = seen
    assert planned.loading_s > 0 and planned.computing_s > 0 and seconds > 0


@pytest.mark.usefixtures("always_read")
def test_codecs_of_one_tier_are_measured_apart(
    open_cache: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that were written before the codec was changed are still read, as they were coded."""
    first = open_cache(store={"codec": "raw"})
    asked(first, TEXTS[:1])
    first.close()
    cache = open_cache(store={"codec": "int8"})
    asked(cache, TEXTS)
    forget(cache)
    store, told = cache.runtime.store, dict[str, tuple[int, float, float]]()

    def observe(tier: str, size: int, seconds: float, *, codec: str, share: float) -> None:
        told[f"{tier} {codec}"] = size, seconds, share

    monkeypatch.setattr(store.cost, "observe_load", observe)
    keys = [cache.runtime.key(_ids(cache, i), cache._salt("public")) for i in range(4)]
    forget(cache)
    int8 = "int8(group=64)"
    assert [store.locate(key) for key in keys] == [("disk", "raw"), *[("disk", int8)] * 3]
    assert set(spans(asked(cache, TEXTS)[0], "tier")) == {"disk"}
    cache.runtime.engine.loader.close()
    sizes = [len(key.token_ids) * cache.runtime.model.geometry.bytes_per_token for key in keys]
    (raw_bytes, raw_s, raw_share), (bytes_, s, share) = told["disk raw"], told[f"disk {int8}"]
    assert (raw_bytes, bytes_) == (sizes[0], sum(sizes[1:]))
    assert raw_share + share == pytest.approx(1) and raw_s * share == pytest.approx(s * raw_share)


@pytest.mark.usefixtures("always_read")
def test_candidates_come_up_before_the_prompt_is_laid_out(
    open_cache: Callable[..., ChunkCache], pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache()
    cache.ingest([pages])
    cache.warm()
    cache.runtime.engine.chunks.clear()
    laid_out: list[float] = []
    true = cache.runtime.prompts.build

    def build(*args: Any) -> Any:
        laid_out.append(counted(cache, "prefetches_total"))
        return true(*args)

    monkeypatch.setattr(cache.runtime.prompts, "build", build)
    answer = cache.ask("where do owls hunt?", top_k=2, max_tokens=2)
    assert laid_out[-1] == 2 and spans(answer, "tier") == ["disk", "disk"]
    assert counted(cache, "prefetches_wasted_total") == 0
    cache.ask("where do owls hunt?", top_k=2, mode="full")
    assert counted(cache, "prefetches_total") == 2
    chunk = next(c for c in cache.catalog.chunks(PUBLIC, DEFAULT) if c.title == "Dogs")
    passage = cache.runtime.prompts.chunk_ids(chunk)
    cache.runtime.foresee([passage, passage], cache._salt("public"))
    assert counted(cache, "prefetches_total") == 3
    cache.runtime.engine.loader.close()
    cache.runtime.engine.chunks.clear()
    assert counted(cache, "prefetches_wasted_total") == 1
