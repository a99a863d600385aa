"""Reuse and repair against full prefill: what is exact, what is touched, what is run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch

from chunkcache.chunk import ChunkKV
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.outcome import Outcome
from chunkcache.errors import ChunkCacheError
from chunkcache.policy_names import RepairPolicyName
from chunkcache.protocol import Sampling

TIGHT = 2e-4  # fp32 logits of the tiny models have a spread of about 5


def worst(a: Outcome, b: Outcome) -> float:
    return float((a.first_logits - b.first_logits).abs().max())


def lengths_of(kind: str) -> list[int]:
    return {
        "one": [40], "one-token": [1], "mixed": [17, 1, 33, 64], "tiny": [1, 1, 2, 1],
        "long": [90, 90, 91],
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["one", "one-token", "mixed", "tiny", "long"])
def test_repairing_every_row_is_full_prefill(bench: Any, kind: str) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate(lengths_of(kind))]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    full = bench.full(prompt)
    for policy in ("all", "question", "deviation", "gradual"):
        repaired = bench.answer(prompt, records, policy, salt=policy.encode())
        assert worst(repaired, full) < TIGHT
        assert repaired.token_ids == full.token_ids
        # the first chunk sits where it was born: it is exact and needs no repair
        assert len(repaired.recomputed) == sum(map(len, chunks[1:]))


def test_every_family_repairs_to_full_prefill(
    build: Callable[..., DecoderModel], open_bench: Callable[..., Any], family: str
) -> None:
    bench = open_bench(build(family))
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([20, 31, 1, 12])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    assert worst(bench.answer(prompt, records, "all"), bench.full(prompt)) < TIGHT


def test_permutations_repeats_and_partial_hits(bench: Any) -> None:
    base = [bench.tokens(n, seed) for seed, n in enumerate([23, 9, 1, 40])]
    record_of = {ids: bench.record(ids) for ids in base}
    rng = random.Random(5)
    for case in range(6):
        chunks = [rng.choice(base) for _ in range(rng.randint(1, 5))]
        records = {i + 1: record_of[c] for i, c in enumerate(chunks) if rng.random() < 0.7}
        prompt = bench.prompt(chunks)
        full = bench.full(prompt)
        repaired = bench.answer(prompt, records, "all", salt=b"case%d" % case)
        assert worst(repaired, full) < TIGHT
        placed = sum(plan.placed for plan in repaired.plan.spans)
        assert placed == sum(len(chunks[i - 1]) for i in records)


def test_a_chunk_right_after_the_head_is_exact_without_repair(bench: Any) -> None:
    chunk = bench.tokens(50, 1)
    prompt = bench.prompt([chunk])
    outcome = bench.answer(prompt, {1: bench.record(chunk)}, "none", budget=0.0)
    assert outcome.plan.task.reusable_rows == 0
    assert worst(outcome, bench.full(prompt)) < TIGHT


def test_a_head_that_is_not_canonical_makes_the_first_chunk_approximate(bench: Any) -> None:
    chunk = bench.tokens(50, 1)
    prompt = bench.prompt([chunk], canonical=False)
    outcome = bench.answer(prompt, {1: bench.record(chunk)}, "none", budget=0.0)
    assert outcome.plan.task.reusable_rows == 50


def test_without_repair_the_answer_differs(bench: Any) -> None:
    """Otherwise the tests above could not fail."""
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([30, 30, 30])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    assert worst(bench.answer(prompt, records, "none"), bench.full(prompt)) > 100 * TIGHT


def test_exact_mode_uses_nothing_approximate(bench: Any) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([30, 30])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    exact = bench.answer(prompt, records, "none", exact_only=True)
    assert worst(exact, bench.full(prompt)) < TIGHT
    assert [p.placed for p in exact.plan.spans] == [0, 30, 0, 0]


@pytest.mark.parametrize("policy", get_args(RepairPolicyName))
@pytest.mark.parametrize("budget", [0.0, 0.13, 0.5, 1.0])
def test_rows_recomputed_are_exactly_the_chosen_and_others_keep_their_chunks_kv(
    bench: Any, policy: str, budget: float
) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([25, 40, 1, 31])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    outcome, seen = bench.answer_and_kv(prompt, records, policy, budget=budget)
    reusable = outcome.plan.task.reusable_rows
    if policy != "all":
        assert len(outcome.recomputed) <= int(budget * reusable + 1e-9)
    untouched = untouched_positions(outcome, reaches_layer=2)
    assert len(untouched) == reusable - len(outcome.recomputed)
    expected = placed_twin(bench, prompt, records)
    # deviation runs every row through the first two layers, so those are fresh for all rows, and
    # chunks that are out of focus are let go after the first of three layers
    first_stale_layer = 2 if outcome.probe_rows and policy in {"deviation", "gradual"} else 0
    if policy == "focused" and 0 < budget < 1:
        first_stale_layer = 1
    for layer in range(first_stale_layer, bench.model.geometry.num_layers):
        ours, theirs = seen[layer][:, untouched], expected[layer][:, untouched]
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(ours[1], theirs[1])


def untouched_positions(outcome: Outcome, *, reaches_layer: int) -> np.ndarray:
    spans = [p.span for p in outcome.plan.spans if p.approximate]
    positions = np.concatenate([np.arange(s.start, s.end) for s in spans])
    return np.setdiff1d(positions, outcome.recomputed)


def placed_twin(bench: Any, prompt: Any, records: dict[int, ChunkKV]) -> torch.Tensor:
    """K rotated and V as placed, by position, from the model's own rotary embedding."""
    geometry = bench.model.geometry
    out = torch.full(
        (geometry.num_layers, 2, prompt.num_tokens, geometry.num_kv_heads, geometry.head_dim),
        float("nan"),
    )
    for index, record in records.items():
        span = prompt.spans[index]
        cos, sin = bench.model.facts.kinds[0].angles.at(torch.arange(span.start, span.end))
        key = record.kv[:, 0]
        half = geometry.head_dim // 2
        turned = torch.cat((-key[..., half:], key[..., :half]), dim=-1)
        out[:, 0, span.start : span.end] = key * cos[:, None] + turned * sin[:, None]
        out[:, 1, span.start : span.end] = record.kv[:, 1]
    return out


def test_prefix_hits_and_chunk_reuse_share_one_coordinate_system(bench: Any) -> None:
    """The k first tokens come from the prefix cache, the rest from records (LMCache-Ascend#277)."""
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([29, 18, 25])]
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    full = bench.full(bench.prompt(chunks))
    for shared in range(4):
        salt = b"prefix%d" % shared
        bench.answer(bench.prompt(chunks[:shared]), {}, exact_only=True, salt=salt)
        outcome = bench.answer(bench.prompt(chunks), records, "all", salt=salt)
        assert worst(outcome, full) < TIGHT
        prefix = sum(plan.prefix for plan in outcome.plan.spans)
        first = 13 + sum(map(len, chunks[:shared]))
        assert prefix >= first // 8 * 8  # more where the question follows too


def test_approximate_kv_is_never_shared_as_an_exact_prefix(bench: Any) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([29, 18, 25])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    bench.answer(prompt, records, "question", budget=0.3, salt=b"s")
    again = bench.answer(prompt, {}, exact_only=True, salt=b"s")
    assert sum(p.prefix for p in again.plan.spans) <= 13 + 29
    assert worst(again, bench.full(prompt)) < TIGHT


def test_answers_are_shared_with_the_next_turn(bench: Any) -> None:
    chunks = [bench.tokens(20, 1)]
    prompt = bench.prompt(chunks)
    first = bench.answer(prompt, {}, exact_only=True, salt=b"s", max_new_tokens=20)
    history = [*bench.question, *first.token_ids]
    follow_up = bench.prompt(chunks, history=history)
    second = bench.answer(follow_up, {}, exact_only=True, salt=b"s")
    assert sum(p.prefix for p in second.plan.spans) >= (13 + 20 + 7 + 19) // 8 * 8
    assert worst(second, bench.full(follow_up)) < TIGHT


def test_tenants_share_no_prefix(bench: Any) -> None:
    prompt = bench.prompt([bench.tokens(40, 1)])
    bench.answer(prompt, {}, exact_only=True, salt=b"one")
    other = bench.answer(prompt, {}, exact_only=True, salt=b"two")
    same = bench.answer(prompt, {}, exact_only=True, salt=b"one")
    assert sum(p.prefix for p in other.plan.spans) == 0
    assert sum(p.prefix for p in same.plan.spans) > 0


@pytest.mark.parametrize("step_tokens", [16, 17, 64, 4096])
def test_the_step_size_changes_nothing(
    tiny: DecoderModel, open_bench: Callable[..., Any], step_tokens: int
) -> None:
    bench = open_bench(tiny, step_tokens=step_tokens)
    reference = open_bench(tiny)
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([35, 22, 41])]
    prompt = bench.prompt(chunks)
    for policy in ("question", "deviation", "gradual", "cfo", "focused"):
        outcomes = []
        for each in (bench, reference):
            records = {i + 1: each.record(ids) for i, ids in enumerate(chunks)}
            outcomes.append(each.answer(prompt, records, policy, budget=0.3, salt=policy.encode()))
        assert worst(*outcomes) < TIGHT
        assert list(outcomes[0].recomputed) == list(outcomes[1].recomputed)


def test_a_batch_answers_like_one_at_a_time(bench: Any) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([35, 22, 41])]
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    cases: list[tuple[Any, Any, str]] = [
        (bench.prompt(chunks), records, "question"),
        (bench.prompt(chunks[:2]), {1: records[1]}, "all"),
        (bench.prompt([]), {}, "none"),
        (bench.prompt(chunks[::-1]), {1: records[3], 3: records[1]}, "cfo"),
    ]
    alone = [
        bench.answer(p, r, policy, budget=0.4, salt=b"a%d" % i, max_new_tokens=8)
        for i, (p, r, policy) in enumerate(cases)
    ]
    running = [
        bench.submit(p, r, policy, budget=0.4, salt=b"b%d" % i, max_new_tokens=8)
        for i, (p, r, policy) in enumerate(cases)
    ]
    for request, expected in zip(running, alone, strict=True):
        outcome = next(e for e in request.events() if isinstance(e, Outcome))
        assert outcome.token_ids == expected.token_ids
        assert worst(outcome, expected) < TIGHT


def test_no_chunks_at_all(bench: Any) -> None:
    prompt = bench.prompt([])
    outcome = bench.answer(prompt, {}, "question", budget=0.5)
    assert worst(outcome, bench.full(prompt)) < TIGHT
    assert outcome.plan.task.reusable_rows == 0


def test_decoding_equals_prefilling_the_answer(bench: Any) -> None:
    prompt = bench.prompt([bench.tokens(30, 3)])
    outcome = bench.full(prompt, max_new_tokens=10, keep_logits=True)
    assert outcome.step_logits is not None
    ids: Sequence[int] = outcome.token_ids
    for count in (1, 4, len(ids) - 1):
        longer = bench.prompt([bench.tokens(30, 3)])
        spans = longer.spans
        extended = type(spans[-1])(
            spans[-1].kind, spans[-1].start, (*spans[-1].token_ids, *ids[:count])
        )
        again = bench.full(type(longer)((*spans[:-1], extended), head_is_canonical=True))
        assert float((again.first_logits - outcome.step_logits[count]).abs().max()) < TIGHT


def test_forced_continuation_gives_the_logits_of_each_step_and_leaves_the_answer_alone(
    bench: Any,
) -> None:
    prompt = bench.prompt([bench.tokens(30, 3)])
    plain = bench.full(prompt, max_new_tokens=6, keep_logits=True)
    assert plain.step_logits is not None
    for count in (1, 2, 6):
        forced = bench.full(prompt, max_new_tokens=6, forced_ids=plain.token_ids[:count])
        assert forced.token_ids == plain.token_ids
        assert forced.step_logits is not None and len(forced.step_logits) == count
        assert float((forced.step_logits - plain.step_logits[:count]).abs().max()) < TIGHT
    other = [5, 6, 7, 8]
    forced = bench.full(prompt, max_new_tokens=6, forced_ids=other)
    assert forced.token_ids == plain.token_ids
    assert forced.step_logits is not None
    assert float((forced.step_logits[0] - plain.step_logits[0]).abs().max()) < TIGHT
    assert float((forced.step_logits[1] - plain.step_logits[1]).abs().max()) > 100 * TIGHT


def test_question_rows_find_what_the_question_looks_at(bench: Any) -> None:
    """Half the budget beats no repair on average; benchmarks/bench_quality.py says how much."""
    drifts: dict[str, list[float]] = {"none": [], "question": []}
    for seed in range(8):
        chunks = [bench.tokens(30, 10 * seed + i) for i in range(3)]
        prompt = bench.prompt(chunks)
        records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
        full = bench.full(prompt)
        for policy, found in drifts.items():
            salt = f"{policy}{seed}".encode()
            found.append(worst(bench.answer(prompt, records, policy, budget=0.5, salt=salt), full))
    assert np.mean(drifts["question"]) < np.mean(drifts["none"])


@pytest.mark.parametrize("forced", [(), (5, 6, 7, 8)])
@pytest.mark.parametrize("ending", ["cancelled", "failed"])
def test_a_token_is_not_shared_before_its_row_has_run(
    bench: Any, monkeypatch: pytest.MonkeyPatch, forced: Sequence[int], ending: str
) -> None:
    """The first token would fill the prompt's last page, and the request ends before its row."""
    chunk = bench.tokens(11, 1)
    prompt = bench.prompt([chunk])
    assert prompt.num_tokens % 8 == 7
    first = bench.full(prompt).token_ids[0]
    passes_before = 2 if forced else 1  # the prompt, and the forced rows beyond it
    true, passes = DecoderModel.forward, []

    def forward(model: DecoderModel, *args: Any) -> Any:
        passes.append(1)
        if len(passes) > passes_before:
            raise RuntimeError("before the row of the first token")
        results = true(model, *args)
        if len(passes) == passes_before and ending == "cancelled":
            request.cancelled.set()
        return results

    with monkeypatch.context() as patch:
        patch.setattr(DecoderModel, "forward", forward)
        request = bench.submit(
            prompt, {}, exact_only=True, salt=b"s", max_new_tokens=9, forced_ids=forced
        )
        with pytest.raises(ChunkCacheError):
            list(request.events())
    follow_up = bench.prompt([chunk], history=[*bench.question, first])
    outcome = bench.answer(follow_up, {}, exact_only=True, salt=b"s")
    assert sum(plan.prefix for plan in outcome.plan.spans) == 24
    assert worst(outcome, bench.full(follow_up)) < TIGHT


def test_context_is_never_read_beyond_what_was_written(bench: Any) -> None:
    """The pool is full of NaN: one read of an unwritten slot would poison the logits."""
    outcome = bench.full(bench.prompt([bench.tokens(77, 1)]), max_new_tokens=20, keep_logits=True)
    assert outcome.step_logits is not None
    assert bool(torch.isfinite(outcome.step_logits).all())


def test_stop_strings_end_the_answer_unseen(bench: Any) -> None:
    prompt = bench.prompt([bench.tokens(20, 1)])
    plain = bench.answer(prompt, {}, exact_only=True, max_new_tokens=24)
    stop = plain.text[3:5]
    assert len(stop) == 2
    wish = Sampling(stop=(stop,))
    stopped = bench.answer(prompt, {}, exact_only=True, max_new_tokens=24, sampling=wish)
    assert stopped.finish_reason == "stop"
    assert stopped.text == plain.text[: plain.text.index(stop)]
