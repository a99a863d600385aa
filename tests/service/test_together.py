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
from chunkcache.store.cost import CostModel, LoadPlan, Rows
from chunkcache.store.layout import header_key
from chunkcache.store.tiered import TieredStore

TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " * 2 for i in range(6)]
MEASURE = Measure(takes_no_prefix=True, leaves_no_prefix=True)
COUNTED = ("chunk_queries", "chunk_hits", "chunk_misses", "store_errors", "prefetches", "evictions")

# the tiny model computes a passage sooner than a disk gives it
ALL_PAY = lambda _, chunks, *__: LoadPlan((True,) * len(chunks))  # noqa: E731


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


def damage(disk: Any, key: Any) -> None:
    """One byte of its header is another from now on."""
    env, name = disk._env, header_key(key.digest)
    with env.writing() as txn:
        header = txn.get(name, db=env._slabs)
        txn.put(name, header[:-20] + bytes([header[-20] ^ 1]) + header[-19:], db=env._slabs)


def scene(cache: ChunkCache) -> list[Any]:
    """What is told of prompts whose passages are in pages, on disk, damaged, lost, new, or twice
    there; and all that was counted."""
    runtime = cache.runtime
    chunks, disk = runtime.engine.chunks, runtime.store.tiers[-1]
    told = [ask(cache, TEXTS[:4])]
    keys = [key_of(cache, text) for text in TEXTS]
    chunks.clear()
    told.append(ask(cache, [TEXTS[1], TEXTS[1]]))
    damage(disk, keys[2])
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
    monkeypatch.setattr(CostModel, "choose", ALL_PAY)
    monkeypatch.setattr(CostModel, "pays", lambda *_: True)
    fast = scene(open_cache(home=tmp_path / "fast"))
    with monkeypatch.context() as patch:
        one_by_one(patch)
        slow = scene(open_cache(home=tmp_path / "slow"))
    assert fast == slow
    assert fast[-2]["chunkcache_chunk_misses_total", "corrupt"] == 1
    assert "corrupt" in {miss for _, _, _, miss, *_ in fast[3][0]}


@pytest.mark.parametrize("verb", ["find", "foresee"])
def test_a_fault_at_any_call_of_the_finder_leaves_no_lease(
    verb: str, open_cache: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch,
    fails_at_each_call: Callable[..., None],
) -> None:  # fmt: skip
    """One passage is on the device, one damaged, two are on disk."""
    monkeypatch.setattr(CostModel, "choose", ALL_PAY)
    monkeypatch.setattr(CostModel, "pays", lambda *_: True)
    cache = open_cache()
    runtime, tried = cache.runtime, set()
    chunks, (disk,) = runtime.engine.chunks, runtime.store.tiers
    ask(cache, TEXTS[:4])
    keys = [key_of(cache, text) for text in TEXTS[:4]]
    made = [disk.get(key) for key in keys]
    runtime.engine.loader.close()  # what it is given from here on settles at once, in vain

    def attempt() -> None:
        if verb == "foresee":
            runtime.finder.foresee(keys)
            return
        with chunks.leases() as leases:
            runtime.finder.find(keys, Rows(), leases)

    def after(where: str) -> None:
        tried.add(where)
        assert not chunks.leased and not disk._mirror._leases, f"after a fault in {where}"  # type: ignore[attr-defined]
        chunks.clear()
        assert not chunks.usage().size_bytes, f"after a fault in {where}"
        assert made[0] and made[1] and disk.put(made[1])
        damage(disk, keys[1])
        here = chunks.hold(made[0])
        assert here is not None
        chunks.release([here])

    after("")
    fails_at_each_call(attempt, after)
    assert tried >= {"locate_many", "open_many", "lend_many", "expect"}
