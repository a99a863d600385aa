"""Several choices of one prompt, their log probabilities, and where an answer ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.outcome import Delta, Outcome
from chunkcache.errors import Cancelled, ChunkCacheError, InvalidRequest
from chunkcache.protocol import Sampling


def warm(**wishes: Any) -> Sampling:
    return Sampling(temperature=1.5, **wishes)


def run(bench: Any, prompt: Any, records: Any = (), policy: str = "none", **options: Any) -> Any:
    """Deltas and the outcome."""
    events = list(bench.submit(prompt, dict(records), policy, **options).events())
    return events[:-1], events[-1]


@pytest.mark.parametrize("length", [20, 21, 24, 27])  # how full the prompt's last page is
@pytest.mark.parametrize("policy", ["none", "question", "all", "gradual", "focused"])
def test_each_choice_is_what_a_request_with_its_seed_gets_alone(
    bench: Any, policy: str, length: int
) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([18, length])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    options = {"budget": 0.4, "max_new_tokens": 11}
    alone = [
        run(bench, prompt, records, policy, sampling=warm(seed=s), salt=b"%d" % s, **options)[1]
        for s in range(5, 9)
    ]
    deltas, together = run(
        bench, prompt, records, policy, sampling=warm(seed=5, n=4), salt=b"n", **options
    )
    assert [c.token_ids for c in together.choices] == [o.token_ids for o in alone]
    assert len({c.token_ids for c in together.choices}) > 1
    for index, choice in enumerate(together.choices):
        assert "".join(d.text for d in deltas if d.index == index) == choice.text


def test_the_prompt_of_all_choices_is_run_once(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[int]] = []
    true = DecoderModel.forward

    def forward(model: DecoderModel, batch: Any, *args: Any) -> Any:
        rows.append([len(group) for group in batch])
        return true(model, batch, *args)

    monkeypatch.setattr(DecoderModel, "forward", forward)
    prompt = bench.prompt([bench.tokens(60, 1)])
    _, outcome = run(
        bench, prompt, exact_only=True, sampling=warm(seed=1, n=3, ignore_eos=True),
        max_new_tokens=6,
    )  # fmt: skip
    assert outcome.cost_ratio == pytest.approx(1.0)
    assert rows[-5:] == [[1, 1, 1]] * 5, "choices decode together"
    assert sum(map(sum, rows)) == prompt.num_tokens + 3 * 5


def test_answers_of_one_choice_are_shared_with_the_next_turn_and_of_others_not(bench: Any) -> None:
    prompt = bench.prompt([bench.tokens(20, 1)])
    _, outcome = run(
        bench, prompt, exact_only=True, salt=b"s", max_new_tokens=20,
        sampling=warm(seed=1, n=2, ignore_eos=True),
    )  # fmt: skip
    for choice, shared in zip(outcome.choices, [56, 40], strict=True):
        history = [*bench.question, *choice.token_ids]
        follow_up = bench.prompt([bench.tokens(20, 1)], history=history)
        _, second = run(bench, follow_up, exact_only=True, salt=b"s")
        assert sum(p.prefix for p in second.plan.spans) == shared
        assert float((second.first_logits - bench.full(follow_up).first_logits).abs().max()) < 2e-4


def test_one_token_each_and_waiting_for_room(
    tiny: DecoderModel, open_bench: Callable[..., Any]
) -> None:
    bench = open_bench(tiny, kv_capacity_bytes=1 << 20)
    prompt = bench.prompt([bench.tokens(5, 1)])
    _, outcome = run(bench, prompt, exact_only=True, sampling=warm(seed=1, n=3), max_new_tokens=1)
    assert [len(c.token_ids) for c in outcome.choices] == [1, 1, 1]
    each = bench.engine.capacity_tokens // 5
    requests = [
        bench.submit(
            prompt, {}, exact_only=True, sampling=warm(n=3, seed=s, ignore_eos=True),
            max_new_tokens=each, salt=b"%d" % s,
        )
        for s in range(3)
    ]  # fmt: skip
    for request in requests:
        (outcome,) = [e for e in request.events() if isinstance(e, Outcome)]
        assert [len(c.token_ids) for c in outcome.choices] == [each] * 3
    with pytest.raises(InvalidRequest, match="n: got 6") as caught:
        bench.submit(prompt, {}, exact_only=True, sampling=warm(n=6), max_new_tokens=each)
    assert caught.value.param == "n"


def test_cancelling_ends_every_choice(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = warm(n=3, seed=1, ignore_eos=True)
    request = bench.submit(bench.prompt([]), {}, exact_only=True, sampling=wish, max_new_tokens=400)
    events = request.events()
    assert isinstance(next(events), Delta)
    bench.engine.cancel(request)
    with pytest.raises(Cancelled):
        list(events)
    bench.wait_until_idle()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_fault_of_one_choice_ends_its_request_and_no_other(bench: Any, failing: int) -> None:
    go_on = threading.Event()
    wish = warm(n=3, seed=1, ignore_eos=True)
    true = bench.engine.submit

    def submit(request: Any) -> None:
        pick, count = request._choices[failing]._sampler.pick, iter(range(9))

        def doomed(*args: Any) -> Any:
            return 1 // 0 if next(count) == 4 else pick(*args)

        request._choices[failing]._sampler.pick = doomed
        go_on.set()
        true(request)

    bench.engine.submit = submit
    doomed = bench.submit(bench.prompt([]), {}, exact_only=True, sampling=wish, max_new_tokens=30)
    bench.engine.submit = true
    other = bench.submit(bench.prompt([]), {}, exact_only=True, sampling=wish, max_new_tokens=30)
    with pytest.raises(ChunkCacheError, match="ZeroDivisionError"):
        list(doomed.events())
    outcome = list(other.events())[-1]
    assert [len(c.token_ids) for c in outcome.choices] == [30] * 3
    bench.wait_until_idle()
    assert bench.engine.chunks.leased == 0 and not bench.engine._running


def test_log_probabilities_of_the_models_own_logits(bench: Any) -> None:
    prompt = bench.prompt([bench.tokens(30, 3)])
    wish = warm(seed=3, logprobs=4, logit_bias={7: 3.0}, presence_penalty=1.0, ignore_eos=True)
    deltas, outcome = run(
        bench, prompt, exact_only=True, sampling=wish, max_new_tokens=9, keep_logits=True
    )
    (choice,) = outcome.choices
    expected = torch.log_softmax(outcome.step_logits.double(), dim=-1)
    assert [c.token_id for c in choice.chances] == list(choice.token_ids)
    for chances, row in zip(choice.chances, expected, strict=True):
        assert chances.logprob == pytest.approx(float(row[chances.token_id]))
        values, ids = row.topk(4)
        assert [i for i, _ in chances.top] == ids.tolist()
        assert [v for _, v in chances.top] == pytest.approx(values.tolist())
    streamed = [c for delta in deltas for c in delta.chances]
    assert streamed == list(choice.chances)
    # without the wish there is none, and a token of the end has none
    assert not run(bench, prompt, exact_only=True, max_new_tokens=3)[1].choices[0].chances


def ending(model: DecoderModel, bench: Any) -> tuple[Any, dict[int, float]]:
    """A prompt, and a bias under which the model ends its answer at once."""
    (end,) = model.eos_ids
    return bench.prompt([bench.tokens(30, 3)]), {end: 100.0}


def test_ignore_eos_goes_on_and_min_tokens_puts_the_end_off(tiny: DecoderModel, bench: Any) -> None:
    prompt, bias = ending(tiny, bench)
    (end,) = tiny.eos_ids

    def tokens(**wishes: Any) -> tuple[int, ...]:
        sampling = Sampling(logit_bias=bias, **wishes)
        outcome = run(bench, prompt, exact_only=True, sampling=sampling, max_new_tokens=6)[1]
        found: tuple[int, ...] = outcome.token_ids
        assert outcome.finish_reason == ("length" if len(found) == 6 else "stop")
        return found

    assert tokens() == (end,)
    assert tokens(ignore_eos=True) == (end,) * 6
    put_off = tokens(min_tokens=3)
    assert len(put_off) == 4 and put_off.index(end) == 3


@pytest.mark.parametrize("way", ["greedy", "drawn", "penalised"])
def test_a_request_gets_the_same_tokens_alone_and_beside_any_others(bench: Any, way: str) -> None:
    wishes: dict[str, Any] = {
        "greedy": {"presence_penalty": 0.7},
        "drawn": {"temperature": 1.3, "seed": 11, "min_p": 0.02},
        "penalised": {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.2, "top_p": 0.95},
    }[way]
    sampling = Sampling(ignore_eos=True, n=2, **wishes)
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([18, 33])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}

    def ask(salt: bytes) -> Any:
        options = {"budget": 0.3, "max_new_tokens": 24, "sampling": sampling, "salt": salt}
        return bench.submit(prompt, records, "question", **options)

    def tokens(request: Any) -> list[tuple[int, ...]]:
        return [choice.token_ids for choice in list(request.events())[-1].choices]

    alone = tokens(ask(b"alone"))
    for crowd in (1, 5, 12):
        others = [
            bench.submit(
                bench.prompt([bench.tokens(40 + 9 * i, i)]), {}, exact_only=True, salt=b"%d" % i,
                max_new_tokens=5 + 4 * i, sampling=warm(seed=i, ignore_eos=True),
            )
            for i in range(crowd)
        ]  # fmt: skip
        assert tokens(ask(b"beside %d" % crowd)) == alone
        for other in others:
            tokens(other)
