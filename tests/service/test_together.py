"""Chunks of a prompt looked for together: the same answers, reports and counts as one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import Metric

from chunkcache import ChunkCache
from chunkcache.engine.chunk_pages import ChunkPages
from chunkcache.protocol import AnswerFinished
from chunkcache.service.asking import Measure
from chunkcache.service.wishes import answer_request
from chunkcache.store.cost import Choice, CostModel
from chunkcache.store.layout import header_key
from chunkcache.store.tiered import TieredStore

TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " * 2 for i in range(6)]
MEASURE = Measure(takes_no_prefix=True, leaves_no_prefix=True)
COUNTED = ("chunk_queries", "chunk_hits", "chunk_misses", "store_errors", "prefetches", "evictions")


def one_by_one(patch: pytest.MonkeyPatch) -> None:
    """The slow twins."""
    lease, contains = ChunkPages.lease_many, ChunkPages.contains_many
    for cls, name, twin in (
        (TieredStore, "locate_many", lambda of, keys: [of.locate(key) for key in keys]),
        (TieredStore, "open_many", lambda of, keys, _: [of.open(key) for key in keys]),
        (ChunkPages, "lease_many", lambda of, keys: [lease(of, [key])[0] for key in keys]),
        (ChunkPages, "contains_many", lambda of, keys: [contains(of, [key])[0] for key in keys]),
    ):
        patch.setattr(cls, name, twin)


def ask(cache: ChunkCache, texts: list[str]) -> Any:
    wishes = {"documents": texts, "max_tokens": 2, "budget": 0.3}
    handle = cache.start(answer_request("why?", wishes), measure=MEASURE)
    answer = [event for event in handle.events() if isinstance(event, AnswerFinished)][-1]
    assert handle.outcome is not None
    cache.runtime.store.flush()
    return (
        [(s.kind, s.rung, s.tier, s.miss, s.reused, s.recomputed) for s in answer.report.spans],
        answer.text, handle.outcome.first_logits.numpy().tobytes(),
    )  # fmt: skip


def key_of(cache: ChunkCache, text: str) -> Any:
    handle = cache.start(answer_request("why?", {"documents": [text], "mode": "full"}))
    list(handle.events())
    return cache.runtime.key(handle.prompt.spans[1].record_ids, cache._salt("public"))


def scene(cache: ChunkCache) -> list[Any]:
    """What is told of prompts whose passages are in pages, on disk, damaged, lost, new, or twice
    there; and all that was counted."""
    runtime = cache.runtime
    chunks, disk = runtime.engine.chunks, runtime.store.tiers[-1]
    told = [ask(cache, TEXTS[:4])]
    keys = [key_of(cache, text) for text in TEXTS]
    chunks.clear()
    told.append(ask(cache, [TEXTS[1], TEXTS[1]]))
    env = disk._env  # type: ignore[attr-defined]
    with env.writing() as txn:
        header = txn.get(header_key(keys[2].digest), db=env._slabs)
        txn.put(header_key(keys[2].digest), header[:-20] + b"x" + header[-19:], db=env._slabs)
    disk.delete(keys[3])
    told.append(runtime.tiers_of(keys))
    told.append(ask(cache, [TEXTS[n] for n in (4, 2, 0, 1, 0, 3)]))
    told.append(runtime.tiers_of(keys))
    chunks.clear()
    runtime.finder.foresee([keys[n] for n in (5, 0, 0, 2)])
    told.append([chunks.contains(key) for key in keys])
    told.append(ask(cache, [TEXTS[n] for n in (2, 0, 5)]))
    runtime.engine.loader.close()
    found: list[Metric] = list(cache.metrics.registry.collect())
    told.append({
        (s.name, *s.labels.values()): s.value for m in found for s in m.samples
        if s.name.removeprefix("chunkcache_").removesuffix("_total") in COUNTED
    })  # fmt: skip
    told.append([runtime.store.contains(key) for key in keys])
    assert chunks.leased == 0 and not disk._mirror._leases  # type: ignore[attr-defined]
    return told


def test_answers_reports_and_counts_are_those_of_one_by_one(
    open_cache: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    # the tiny model computes a passage sooner than a disk gives it
    all_pay = lambda _, chunks, *__: Choice((True,) * len(chunks))  # noqa: E731
    monkeypatch.setattr(CostModel, "choose", all_pay)
    monkeypatch.setattr(CostModel, "pays", lambda *_: True)
    fast = scene(open_cache(home=tmp_path / "fast"))
    with monkeypatch.context() as patch:
        one_by_one(patch)
        slow = scene(open_cache(home=tmp_path / "slow"))
    assert fast == slow
    assert fast[-2]["chunkcache_chunk_misses_total", "corrupt"] == 1
    assert "corrupt" in {miss for _, _, _, miss, *_ in fast[3][0]}
