"""Made-up traffic is as asked for; what reuse is possible, counted by hand and by a slow twin."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.reuse import compare_reuse
from chunkcache.evaluate.hitrate.synthetic import ZipfTraffic
from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace, TracedRequest, measure

Prompt = list[tuple[Any, bool]]


def trace_of(*prompts: Prompt) -> Trace:
    requests = [
        TracedRequest(float(n), [c for c, _ in p], [1] * len(p), [flag for _, flag in p])
        for n, p in enumerate(prompts)
    ]
    return Trace("t", lambda: iter(requests))


def shares(*prompts: Prompt) -> list[float]:
    reuse = compare_reuse(trace_of(*prompts))
    kinds = (reuse.exact_prefix, reuse.ordered_prefix, reuse.same_set, reuse.any_context)
    return [
        round(by_access * sum(flag for p in prompts for _, flag in p)) for by_access, _ in kinds
    ]


def test_the_kinds_of_reuse_by_hand() -> None:
    head, other = ("head", False), ("other head", False)
    a, b, c = ("a", True), ("b", True), ("c", True)
    assert shares([head, a, b], [head, a, b]) == [2, 2, 2, 2]
    assert shares([head, a, b], [other, a, b]) == [0, 2, 2, 2]
    assert shares([a, b, c], [b, a, c]) == [0, 0, 1, 3]  # c after the same two, in another order
    assert shares([a, b], [c, b]) == [0, 0, 0, 1]
    assert shares([a, a]) == [0, 0, 0, 1]  # after itself it is in another place
    assert shares([head, a], [a]) == [0, 1, 1, 1]
    assert shares([a, head, b], [a, other, b]) == [1, 2, 2, 2]


def test_sets_whose_numbers_have_one_sum_are_two_sets() -> None:
    numbered = [(n, False) for n in range(12)]  # chunks get numbers in order of first sight
    pairs = list(itertools.combinations(range(9), 2))
    for left, right in itertools.combinations(pairs, 2):
        if sum(left) == sum(right) and not set(left) & set(right):
            one, other = ([(n, True) for n in (*pair, 11)] for pair in (left, right))
            assert shares(numbered, one, other)[2] == 0, (left, right)


prompts = st.lists(
    st.lists(st.tuples(st.integers(-2, 4), st.booleans()), max_size=5), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(prompts=prompts)
def test_the_kinds_of_reuse_as_a_slow_twin_counts_them(prompts: list[Prompt]) -> None:
    seen: list[set[Any]] = [set() for _ in range(4)]
    hits = [0] * 4
    for prompt in prompts:
        for end, (chunk, is_passage) in enumerate(prompt):
            if not is_passage:
                continue
            before = [c for c, flag in prompt[:end] if flag]
            exact = tuple(c for c, _ in prompt[:end])
            for kind, mark in enumerate(
                ((exact, chunk), (tuple(before), chunk), (frozenset(before), chunk), chunk)
            ):
                hits[kind] += mark in seen[kind]
                seen[kind].add(mark)
    assert shares(*prompts) == hits


def test_what_is_reused_is_counted_in_tokens_too() -> None:
    requests = [TracedRequest(0.0, ["a", "b"], [10, 30]), TracedRequest(1.0, ["b"], [30])]
    reuse = compare_reuse(Trace("t", lambda: iter(requests)))
    assert reuse.any_context == (1 / 3, 30 / 70)


def test_traffic_is_the_same_each_time_and_as_many_as_asked_for() -> None:
    trace = ZipfTraffic.parse("zipf:chunks=50,requests=40,per_request=4,seed=3").trace()
    requests = list(trace)
    assert list(trace) == requests and len(requests) == 40 == trace.num_requests
    assert all(len(set(request.ids)) == 4 for request in requests)
    assert [r.at_s for r in requests] == sorted(r.at_s for r in requests)
    sizes: dict[Any, int] = {}
    for request in requests:
        for chunk, tokens in request.passages():
            assert sizes.setdefault(chunk, tokens) == tokens and 139 <= tokens <= 418
    assert list(ZipfTraffic.parse("zipf:chunks=50,requests=40,per_request=4").trace()) != requests


def counts(text: str) -> list[Counter[Any]]:
    """Of the first and of the last fifth of the requests."""
    requests = list(ZipfTraffic.parse(text).trace())
    fifth = len(requests) // 5
    return [
        Counter(c for r in part for c in r.ids) for part in (requests[:fifth], requests[-fifth:])
    ]


def test_alpha_drift_and_bursts_do_what_they_say() -> None:
    still = "zipf:chunks=200,requests=1000,per_request=2,bursts=0,drift=0"
    first, _ = counts(f"{still},alpha=1.2")
    flat, _ = counts(f"{still},alpha=0")
    assert first.most_common(1)[0][1] > 3 * flat.most_common(1)[0][1]
    first, last = counts(f"{still},alpha=1.2")
    moved, away = counts(f"{still},alpha=1.2,drift=1")

    def common(a: Counter[Any], b: Counter[Any]) -> int:
        return len({c for c, _ in a.most_common(20)} & {c for c, _ in b.most_common(20)})

    assert common(moved, away) < common(first, last)
    burst = ZipfTraffic.parse(f"{still},alpha=0,bursts=1,burst_requests=10,topic=3")
    asked = [set(r.ids) for r in burst.trace()][:10]
    assert len(set.union(*asked)) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zipf:speed=1", "got 'speed=1', must be one of chunks, requests, per_request, alpha"),
        ("zipf:chunks=many", "trace: chunks: got 'many', must be a whole number"),
        ("zipf:chunks=0", "trace: chunks: got 0, must be from 1 to 100000000"),
        ("zipf:alpha=nan", "trace: alpha: got nan, must be from 0.0 to 5.0"),
        ("zipf:chunks=3", "trace: per_request: got 6, must be at most chunks, 3"),
    ],
)
def test_traffic_that_cannot_be_made_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        ZipfTraffic.parse(text)
    assert said in error.value.message


def test_the_default_is_near_ragpulse() -> None:
    facts = measure(ZipfTraffic().trace(), RecordSizes())
    assert facts.accesses == 30_000
    assert 0.82 < facts.highest_hit_rate < 0.92 and 0.1 < facts.once / facts.distinct < 0.4
