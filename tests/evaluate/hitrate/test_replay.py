"""Replays: against hand counts and a ten-line twin, what must hold of any trace, and memory."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.evaluate.hitrate.policies import POLICIES
from chunkcache.evaluate.hitrate.replay import Replay, Replaying, replay
from chunkcache.evaluate.hitrate.simulated import Device, TierSpec
from chunkcache.evaluate.hitrate.synthetic import ZipfTraffic
from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace, TracedRequest, measure

TOKEN = RecordSizes(1)
Prompts = list[list[tuple[Any, int]]]


def trace_of(prompts: Prompts) -> Trace:
    requests = [
        TracedRequest(float(n), [c for c, _ in p], [size for _, size in p])
        for n, p in enumerate(prompts)
    ]
    return Trace("t", lambda: iter(requests))


def letters(text: str) -> Trace:
    """Every letter a request of a chunk of one token; a dash ends nothing but looks better."""
    return trace_of([[(letter, 1)] for letter in text if letter != "-"])


def run(
    trace: Trace, *specs: TierSpec, policy: str = "lru", sizes: RecordSizes = TOKEN, **more: Any
) -> Replay:
    (result,) = replay(trace, sizes, [Replaying(specs, policy, POLICIES[policy], **more)])
    return result


def memory(capacity: int, device: Device = Device()) -> TierSpec:  # noqa: B008 - frozen
    return TierSpec("memory", capacity, device)


def disk(capacity: int, device: Device = Device()) -> TierSpec:  # noqa: B008 - frozen
    return TierSpec("disk", capacity, device, durable=True)


@pytest.mark.parametrize(
    ("policy", "text", "hits"),
    [
        ("lru", "abcab-cc", 5 - 1),  # abc fit: a b c c hit
        ("lru", "abca-d-ab", 3 - 1),  # d pushes b out, not a
        ("fifo", "abca-d-ab", 1),  # d pushes a out, though it was used; a then pushes b out
        ("gdsf", "aab-c-d-a", 2),  # a was used twice and stays
        ("gdsf", "aab-c-d-e-f-a", 1),  # but not for ever: the clock has come to it
    ],
)
def test_policies_by_hand(policy: str, text: str, hits: int) -> None:
    result = run(letters(text), memory(3), policy=policy)
    assert result.hits == hits
    assert result.accesses == len(text.replace("-", ""))


def test_tiers_by_hand() -> None:
    """One token of memory over two of disk; what is made is written to both at once."""
    result = run(letters("ab-a-a-c-b"), memory(1), disk(2))
    # a b are made; a from disk; a from memory; c pushes b out of the disk; b is made again
    by_name = {tier.name: tier for tier in result.tiers}
    assert (by_name["memory"].hits, by_name["disk"].hits) == (1, 1)
    assert by_name["disk"].written_bytes == 4 and by_name["disk"].evicted == 2
    assert result.missed_bytes == 4 and result.byte_miss_rate == pytest.approx(4 / 6)


def test_time_by_hand() -> None:
    """A token takes a second to compute and a tenth to load, and a load an eighth to begin."""
    slow = Device(bytes_per_s=10.0, latency_s=0.125)
    result = run(letters("ab-a-a"), memory(1), disk(9, slow), tokens_per_s=1.0)
    assert result.cold_s == 4.0 and result.time_s == pytest.approx(2.0 + 0.225)
    assert result.time_saved == pytest.approx(1.775 / 4)


def test_a_tier_that_is_slower_than_computing_is_left_alone() -> None:
    losing = Device(bytes_per_s=0.5)
    text = "ab" * 20
    result = run(letters(text), memory(1), disk(9, losing), tokens_per_s=1.0)
    # asked once to be measured, and now and then since
    assert 1 <= result.tiers[1].hits < 8
    assert run(letters(text), memory(1), disk(9), tokens_per_s=1.0).tiers[1].hits == 38


def test_a_request_looks_up_all_its_passages_before_any_is_kept() -> None:
    result = run(trace_of([[("a", 1)], [("b", 1), ("a", 1)]]), memory(1))
    assert result.hits == 1  # one by one, b would have pushed a out
    alone = run(trace_of([[("a", 1)], [("b", 1), ("a", 1)]]).by_access(), memory(1))
    assert alone.hits == 0


def test_a_passage_that_stands_twice_is_computed_once() -> None:
    result = run(trace_of([[("a", 4), ("a", 4)]]), memory(9))
    assert (result.hits, result.missed_bytes, result.hit_rate) == (1, 4, 0.5)


def test_sizes_are_whole_pages() -> None:
    sizes = RecordSizes(bytes_per_token=2, page_tokens=4)
    prompts: Prompts = [[("a", 5)], [("b", 3)], [("a", 5)], [("b", 3)]]
    assert run(trace_of(prompts), memory(24), sizes=sizes).hits == 2  # 16 and 8 bytes
    assert run(trace_of(prompts), memory(23), sizes=sizes).hits == 0


prompts = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=25
).map(lambda found: [[(chunk, 1 + chunk % 3) for chunk in prompt] for prompt in found])


@settings(max_examples=40, deadline=None)
@given(prompts=prompts, policy=st.sampled_from(sorted(POLICIES)), with_disk=st.booleans())
def test_a_cache_without_end_misses_each_chunk_once(
    prompts: Prompts, policy: str, with_disk: bool
) -> None:
    specs = [memory(3), disk(10**6)] if with_disk else [memory(10**6)]
    result = run(trace_of(prompts), *specs, policy=policy)
    distinct = {chunk: size for prompt in prompts for chunk, size in prompt}
    accesses = sum(map(len, prompts))
    assert result.hits == accesses - len(distinct)
    assert result.missed_bytes == sum(distinct.values())
    facts = measure(trace_of(prompts), TOKEN)
    assert result.object_hit_rate == pytest.approx(facts.highest_hit_rate)
    assert result.hit_rate == pytest.approx(facts.highest_token_hit_rate)
    assert result.tiers[-1].written_bytes == sum(distinct.values())


def lru_hits(prompts: Prompts, capacity: int) -> int:
    """The twin: a list of chunks by use, and their sizes."""
    held: OrderedDict[Any, int] = OrderedDict()
    hits = 0
    for chunk, size in (access for prompt in prompts for access in prompt):
        hits += chunk in held
        if chunk not in held and size <= capacity:
            while sum(held.values()) + size > capacity:
                held.popitem(last=False)
            held[chunk] = size
        if chunk in held:
            held.move_to_end(chunk)
    return hits


@settings(max_examples=60, deadline=None)
@given(prompts=prompts, capacity=st.integers(0, 12))
def test_lru_is_what_ten_lines_say(prompts: Prompts, capacity: int) -> None:
    assert run(trace_of(prompts).by_access(), memory(capacity)).hits == lru_hits(prompts, capacity)


def windowed_misses(prompts: Prompts, capacity: int) -> tuple[int, int]:
    """The shipped policy, as slowly as it can be said: every use is kept, all is sorted anew.

    Returns: accesses and tokens that were missed.
    """
    uses: dict[Any, list[int]] = {}
    window: dict[Any, int] = {}  # sizes, oldest use first
    main: dict[Any, int] = {}
    moment = misses = missed_tokens = 0

    def worth(chunk: Any) -> float:
        return sum(2.0 ** ((at - moment) / 8000) for at in uses[chunk])

    for prompt in prompts:
        missing = {}
        for chunk, size in dict(prompt).items():
            moment += 1
            uses.setdefault(chunk, []).append(moment)
            if chunk in window:
                window[chunk] = window.pop(chunk)
            elif chunk not in main:
                missing[chunk] = size
        misses, missed_tokens = misses + len(missing), missed_tokens + sum(missing.values())
        for chunk, size in missing.items():
            if size > capacity:
                continue
            while sum(window.values()) + sum(main.values()) + size > capacity:
                if main:
                    del main[min(main, key=worth)]
                else:
                    del window[next(iter(window))]
            window[chunk] = size
            while len(window) > 4 and sum(window.values()) > capacity // 10:
                oldest = next(iter(window))
                main[oldest] = window.pop(oldest)
    return misses, missed_tokens


@settings(max_examples=60, deadline=None)
@given(prompts=prompts, capacity=st.integers(0, 16))
def test_the_shipped_policy_is_what_its_slow_twin_says(prompts: Prompts, capacity: int) -> None:
    result = run(trace_of(prompts), memory(capacity), policy="windowed")
    assert (result.accesses - result.hits, result.missed_bytes) == windowed_misses(
        prompts, capacity
    )


def peak_bytes(trace: Trace, sizes: list[int]) -> int:
    settings_ = [Replaying([memory(size)], "windowed", POLICIES["windowed"]) for size in sizes]
    tracemalloc.start()
    try:
        replay(trace, TOKEN, settings_)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_distinct_chunks_and_not_with_requests() -> None:
    def traffic(**fields: Any) -> Trace:
        return ZipfTraffic(bursts=0.0, alpha=0.5, per_request=4, **fields).trace()

    sizes = [10_000]
    few = peak_bytes(traffic(chunks=100, requests=150), sizes)
    longer = peak_bytes(traffic(chunks=100, requests=600), sizes)
    more = peak_bytes(traffic(chunks=500, requests=600), sizes)
    assert longer < 1.3 * few
    assert 2 * few < more < 8 * few
