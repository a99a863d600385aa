"""The choice of what comes up: in O(n log n), and as its slow twin makes it, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.store import cost as module
from chunkcache.store.cost import CostModel, Planned, Rows, Source, Stored

TIERS, CODECS = ["disk", "far"], ["", "int8", "raw"]


class SlowModel(CostModel):
    """Plans the whole prompt anew after each chunk that is taken off."""

    def _best(self, prompt: Any) -> tuple[list[bool], Planned | None]:
        chunks = prompt.chunks
        loads = [True] * len(chunks)
        best, least = list(loads), self.planned(prompt, loads)
        while least is not None and any(loads):
            used = {c.tier for c, load in zip(chunks, loads, strict=True) if load}
            slowest = max(sorted(used), key=lambda tier: self.tier_s(prompt, loads, tier))
            own = [i for i, c in enumerate(chunks) if loads[i] and c.tier == slowest]
            loads[min(own, key=lambda i: self._price(chunks[i]))] = False
            planned = self.planned(prompt, loads)
            if planned is not None and planned.seconds < least.seconds:
                best, least = list(loads), planned
        return best, least

    def tier_s(self, prompt: Any, loads: Sequence[bool], tier: str) -> float:
        sizes: Counter[Source] = Counter(prompt.coming)
        for chunk, load in zip(prompt.chunks, loads, strict=True):
            sizes[chunk.source] += chunk.size_bytes if load else 0
        latency, moving = 0.0, 0.0
        for source, size in sizes.items():
            if source[0] == tier and size:
                first, each = self._sources[source].slopes()
                latency, moving = max(latency, first), moving + each * size
        return latency + moving

    def planned(self, prompt: Any, loads: Sequence[bool]) -> Planned | None:
        instead, used = Rows(), set(prompt.coming)
        for chunk, load in zip(prompt.chunks, loads, strict=True):
            instead = instead if load else instead + chunk.instead
            used |= {chunk.source} if load else set()
        computing = self._compute_s(prompt.always + instead)
        if computing is None or not used <= self._sources.keys():
            return None
        tiers = {tier for tier, _ in used}
        loading = max((self.tier_s(prompt, loads, tier) for tier in tiers), default=0.0)
        both = max(loading, computing) + self._share() * min(loading, computing)
        return Planned(loading, computing, both)


sources = st.tuples(st.sampled_from(TIERS), st.sampled_from(CODECS))
seconds = st.sampled_from([1e-3, 0.02, 0.1, 0.5])
measured = st.lists(
    st.one_of(
        st.tuples(st.just("load"), sources, st.sampled_from([10, 1000, 5000]), seconds),
        st.tuples(st.just("rows"), st.integers(1, 300), st.integers(0, 9000), seconds),
        st.tuples(st.just("overlap"), seconds, seconds, seconds),
    ),
    max_size=25,
)
# few values each: chunks that cost the same are told apart by their place alone
stored = st.builds(
    lambda source, size, context, tokens: Stored(
        source[0], size, Rows.after(context, tokens), source[1]
    ),
    sources, st.sampled_from([100, 200, 1000]), st.sampled_from([0, 50]), st.integers(1, 3),
)  # fmt: skip


def told(model: CostModel, facts: list[tuple[Any, ...]]) -> CostModel:
    for kind, *fact in facts:
        if kind == "load":
            (tier, codec), size, took_s = fact
            model.observe_load(tier, size, took_s, codec=codec)
        elif kind == "overlap":
            loading, computing, took_s = fact
            model.observe_overlap(Planned(loading, computing, 0.0), took_s)
        else:
            model.observe_prefill(*fact)
    return model


@settings(max_examples=80, deadline=None)
@given(
    facts=measured, chunks=st.lists(stored, max_size=12), budget=st.sampled_from([0.0, 0.15, 0.3]),
    coming=st.dictionaries(sources, st.sampled_from([0, 700, 9000]), max_size=3),
    is_measured=st.booleans(), prompts=st.sampled_from([1, 1, 1, 17]),
)  # fmt: skip
def test_the_choice_is_its_slow_twin_s(
    facts: list[tuple[Any, ...]], chunks: list[Stored], budget: float, coming: dict[Source, int],
    is_measured: bool, prompts: int,
) -> None:  # fmt: skip
    if is_measured:  # else it is rare that a choice is made at all
        everything = [("load", (tier, codec), 1000, 0.02) for tier in TIERS for codec in CODECS]
        facts = [("rows", 3, 100, 0.02), *everything, *facts]
    always = Rows(budget * 17, budget * 1001)
    slow, fast = told(SlowModel(), facts), told(CostModel(), facts)
    for _ in range(prompts):  # in the 16th a source that lost is tried again
        assert fast.choose(chunks, always, coming) == slow.choose(chunks, always, coming)


@pytest.mark.parametrize("count", [50, 800])
def test_work_for_a_chunk_does_not_grow_with_the_chunks(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    added, add = [0], Rows.__add__

    def counted(rows: Rows, other: Rows) -> Rows:
        added[0] += 1
        return add(rows, other)

    facts = [("rows", 3, 100, 0.02), ("load", ("disk", ""), 1000, 0.5)]
    cost, measure = told(CostModel(), facts), module._BusyTier.measure

    def measured_again(tier: Any) -> None:
        added[0] += len(tier.sizes)
        measure(tier)

    monkeypatch.setattr(Rows, "__add__", counted)
    monkeypatch.setattr(module._BusyTier, "measure", measured_again)
    cost.choose([Stored("disk", 1000, Rows.after(0, 3))] * count, Rows())
    assert count < added[0] <= 4 * count
