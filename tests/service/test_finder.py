"""What the finder finds, held against what was put where: no twin that shares a line with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chunkcache import ChunkCache
from chunkcache.chunk import ChunkKV
from chunkcache.service.wishes import answer_request
from chunkcache.store.cost import CostModel, LoadPlan, Rows, Stored
from chunkcache.store.layout import header_key

HERE, COMING, SLOWER, NEAR, DAMAGED, NOWHERE, NEARER = range(7)
TEXTS = [f"Passage {i}: " + "the quick brown fox jumps. " * (i + 2) for i in range(7)]
ALWAYS = Rows(31, 700)


class Scene:
    """One passage is on the device, one on its way there, one damaged, one lost, three on disk."""

    def __init__(self, cache: ChunkCache) -> None:
        self.cache, self.runtime = cache, cache.runtime
        self.chunks, (self.disk,) = cache.runtime.engine.chunks, cache.runtime.store.tiers
        handle = cache.start(answer_request("why?", {"documents": TEXTS, "mode": "full"}))
        list(handle.events())
        ids = [span.record_ids for span in handle.prompt.spans if span.kind == "chunk"]
        self.keys = [self.runtime.key(own, cache._salt("public")) for own in ids]
        with self.chunks.leases() as leases:
            self.runtime.find(self.keys, cache._salt("public"))
            for resident in self.chunks._residents.values():
                leases.add(resident)
        self.runtime.store.flush()
        self.made: list[ChunkKV] = [self.disk.get(key) for key in self.keys]  # type: ignore[misc]
        self.chunks.clear()
        here = self.chunks.hold(self.made[HERE])
        assert here is not None
        self.chunks.release([here])
        coming = self.chunks.expect(self.keys[COMING], self.made[COMING].stats, foreseen=True)
        assert coming is not None
        self.coming = coming[0]
        self.coming.source = "disk", "raw"
        env, name = self.disk._env, header_key(self.keys[DAMAGED].digest)  # type: ignore[attr-defined]
        with env.writing() as txn:
            header = txn.get(name, db=env._slabs)
            txn.put(name, header[:40] + bytes([header[40] ^ 1]) + header[41:], db=env._slabs)
        self.disk.delete(self.keys[NOWHERE])
        self.before = self.counts()

    def counts(self) -> Counter[tuple[str, ...]]:
        """What is counted of look-ups, by name and labels."""
        found = list(self.cache.metrics.registry.collect())
        counted = ("chunk_queries", "chunk_hits", "chunk_misses", "store_errors", "prefetches")
        samples = [s for metric in found for s in metric.samples if s.name.endswith("_total")]
        named = [(s.name[len("chunkcache_") : -len("_total")], s) for s in samples]
        return Counter({(n, *s.labels.values()): int(s.value) for n, s in named if n in counted})

    def stored(self, number: int) -> Stored:
        """As the cost model is to be told of it."""
        tokens, head = len(self.keys[number].token_ids), len(self.runtime.prompts.born_prefix)
        size = self.made[number].kv.nbytes
        return Stored("disk", size, Rows(tokens, tokens * head + tokens * (tokens + 1) // 2), "raw")

    def came(self) -> None:
        """All that is on its way has come; the loader has ended."""
        self.chunks.write(self.coming, 0, self.made[COMING].kv)
        self.chunks.settle(self.coming)
        for resident in list(self.chunks._residents.values()):
            resident.arrival.wait_for(len(self.made[0].kv) - 1, 60)
        self.runtime.engine.loader.close()

    def is_as_it_was_put(self, number: int) -> bool:
        """V, which nothing turns, in the pages of a chunk on the device."""
        resident, wanted = self.chunks._residents[self.keys[number].digest], self.made[number].kv
        count = wanted.shape[2]
        values = [
            self.chunks._arena.read_rows(layer, resident.pages)[1][:count]
            for layer in range(len(wanted))
        ]
        return resident.arrival.is_whole and torch.equal(torch.stack(values), wanted[:, 1])


@pytest.fixture
def scene(open_cache: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene(open_cache())
    slower = made.stored(SLOWER)
    monkeypatch.setattr(CostModel, "pays", lambda _, stored: stored != slower)
    return made


def choosing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked when it is chosen; one passage would take longer to load."""
    asked, slower = list[tuple[Any, ...]](), scene.stored(SLOWER)

    def choose(_: CostModel, chunks: list[Stored], *more: Any) -> LoadPlan:
        asked.append((chunks, *more))
        return LoadPlan(tuple(chunk != slower for chunk in chunks))

    monkeypatch.setattr(CostModel, "choose", choose)
    return asked


def test_what_is_found_is_what_was_put_where(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, chunks = choosing(scene, monkeypatch), scene.chunks
    with chunks.leases() as leases:
        found, _ = scene.runtime.finder.find(scene.keys, ALWAYS, leases)
        told = {number: found.pop(key) for number, key in enumerate(scene.keys)}
        assert found == {}
        held = [scene.stored(number) for number in (SLOWER, NEAR, NEARER)]
        assert asked == [(held, ALWAYS, {("disk", "raw"): scene.stored(COMING).size_bytes})]
        assert {number: (one.tier, one.miss) for number, one in told.items()} == {
            HERE: ("host", None), COMING: ("disk", None), NEAR: ("disk", None),
            NEARER: ("disk", None), SLOWER: (None, "slower"), DAMAGED: (None, "corrupt"),
            NOWHERE: (None, "absent"),
        }  # fmt: skip
        there = {number for number, one in told.items() if one.resident is not None}
        assert there == {HERE, COMING, NEAR, NEARER}
        assert {id(one) for one in leases.residents} == {id(told[n].resident) for n in there}
        assert all(told[n].resident.key == scene.keys[n] for n in there)  # type: ignore[union-attr]
        assert scene.counts() - scene.before == {
            ("chunk_queries", "host"): 7, ("chunk_hits", "host"): 2, ("chunk_queries", "disk"): 4,
            ("chunk_hits", "disk"): 2, ("chunk_misses", "slower"): 1,
            ("chunk_misses", "corrupt"): 1, ("chunk_misses", "absent"): 1,
            ("store_errors", "disk", "corrupt"): 1,
        }  # fmt: skip
        scene.came()
        assert chunks.leased == 4 and not scene.disk._mirror._leases  # type: ignore[attr-defined]
        assert all(scene.is_as_it_was_put(number) for number in there)
        again, _ = scene.runtime.finder.find([scene.keys[n] for n in there], ALWAYS, leases)
        assert {one.tier for one in again.values()} == {"host"}
    assert chunks.leased == 0


def test_where_there_is_no_room_or_another_was_faster_nothing_is_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    choosing(scene, monkeypatch)
    chunks, store = scene.chunks, scene.runtime.store
    expect, open_many = chunks.expect, store.open_many

    def while_another_comes(*which: Any) -> Any:
        opened = open_many(*which)
        other = chunks.hold(scene.made[NEARER])
        assert other is not None
        chunks.release([other])
        return opened

    def no_room(key: Any, *what: Any, **more: Any) -> Any:
        return None if key == scene.keys[NEAR] else expect(key, *what, **more)

    monkeypatch.setattr(store, "open_many", while_another_comes)
    monkeypatch.setattr(chunks, "expect", no_room)
    monkeypatch.setattr(scene.runtime.engine.loader, "load", lambda *_: pytest.fail("read"))
    with chunks.leases() as leases:
        keys = [scene.keys[NEAR], scene.keys[NEARER]]
        found, _ = scene.runtime.finder.find(keys, ALWAYS, leases)
        none, other = (found[key] for key in keys)
        assert (none.resident, none.tier, none.miss) == (None, None, "no_room")
        assert other.resident is not None and (other.tier, other.miss) == ("disk", None)
        assert leases.residents == [other.resident] and other.resident.leases == 1
        assert not scene.disk._mirror._leases  # type: ignore[attr-defined]
        assert scene.counts() - scene.before == {
            ("chunk_queries", "host"): 2, ("chunk_queries", "disk"): 2, ("chunk_hits", "disk"): 2,
            ("chunk_misses", "no_room"): 1,
        }  # fmt: skip


def test_what_is_foreseen_is_what_pays_and_is_not_there(scene: Scene) -> None:
    order = (NEAR, HERE, NEAR, DAMAGED, SLOWER, COMING, NOWHERE, NEARER)
    scene.runtime.finder.foresee([scene.keys[number] for number in order])
    scene.came()
    here = {scene.keys.index(one.key): one for one in scene.chunks._residents.values()}
    assert here.keys() == {HERE, COMING, NEAR, NEARER}
    for number in (NEAR, NEARER):
        assert here[number].is_foreseen and here[number].source == ("disk", "raw")
        assert scene.is_as_it_was_put(number)
    assert scene.chunks.leased == 0 and not scene.disk._mirror._leases  # type: ignore[attr-defined]
    assert scene.counts() - scene.before == {
        ("chunk_queries", "disk"): 2, ("chunk_hits", "disk"): 2, ("prefetches",): 2,
    }  # fmt: skip
