"""Tokens that are read when the next row has been queued already: the same answers as at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from chunkcache.engine import sample
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.sample import Drawn, one_of
from chunkcache.errors import ChunkCacheError
from chunkcache.protocol import Sampling

WISHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 1.3, "seed": 11, "min_p": 0.02, "n": 3},
    "cut": {"temperature": 1.1, "seed": -3, "top_p": 0.9, "top_k": 40},
    "penalised": {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.2, "n": 2},
    "counted": {"frequency_penalty": 0.4, "presence_penalty": 0.3, "logit_bias": {7: 3.0}},
    "later end": {"min_tokens": 4, "logit_bias": {1: 100.0}},
    "end": {"logit_bias": {1: 100.0}},
    "never ends": {"ignore_eos": True, "logit_bias": {1: 100.0}},
    "log probabilities": {"temperature": 1.0, "seed": 2, "logprobs": 2},
}


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Engines read late; how many passes were queued between drawing a token and reading it."""
    passes, gaps, true = [0], list[int](), DecoderModel.forward

    class Counted(Drawn):
        def __init__(self, token: torch.Tensor, sound: torch.Tensor) -> None:
            super().__init__(token, sound)
            self._drawn_at = passes[0]

        def read_unjudged(self) -> int:
            gaps.append(passes[0] - self._drawn_at)
            return super().read_unjudged()

    def forward(model: DecoderModel, *args: Any) -> Any:
        passes[0] += 1
        return true(model, *args)

    monkeypatch.setattr(DecoderModel, "forward", forward)
    monkeypatch.setattr(sample, "Drawn", Counted)
    return gaps


@pytest.mark.parametrize("way", list(WISHES))
def test_the_same_tokens_whenever_they_are_read(
    bench: Any, monkeypatch: pytest.MonkeyPatch, ahead: list[int], way: str
) -> None:
    sampling = Sampling(**WISHES[way])
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([18, 33])]
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}

    def ask(salt: bytes) -> Outcome:
        return bench.answer(  # type: ignore[no-any-return]
            bench.prompt(chunks), records, "question", budget=0.3, max_new_tokens=12,
            sampling=sampling, salt=salt,
        )  # fmt: skip

    at_once = ask(b"at once")
    assert set(ahead) == {0}
    ahead.clear()
    monkeypatch.setattr(DecoderModel, "runs_ahead", True)
    late = ask(b"late")
    assert late.choices == at_once.choices
    if way == "log probabilities":
        assert set(ahead) == {0}
    else:  # a pass is queued before each token is read, but for one that is known to be the last
        assert set(ahead) <= {0, 1} and sum(gap == 0 for gap in ahead) <= len(late.choices)
        assert len(ahead) == sum(len(c.token_ids) for c in late.choices)


def test_stop_strings_end_an_answer_where_they_did(
    bench: Any, monkeypatch: pytest.MonkeyPatch, ahead: list[int]
) -> None:
    prompt = bench.prompt([bench.tokens(20, 1)])
    wish: dict[str, Any] = {"temperature": 1.5, "seed": 3, "ignore_eos": True}
    whole = bench.answer(
        prompt, {}, exact_only=True, sampling=Sampling(**wish), max_new_tokens=20, salt=b"whole"
    )
    stop = whole.text[8:10]
    assert stop.strip()
    wish["stop"] = (stop,)
    answers = []
    for late in (False, True):
        monkeypatch.setattr(DecoderModel, "runs_ahead", late)
        answers.append(bench.answer(
            prompt, {}, exact_only=True, sampling=Sampling(**wish), max_new_tokens=20,
            salt=b"%d" % late,
        ))  # fmt: skip
    assert answers[0].choices == answers[1].choices
    assert answers[1].finish_reason == "stop" and len(answers[1].token_ids) < 20
    assert 1 in ahead


@pytest.mark.parametrize("late", [False, True])
def test_no_answer_comes_of_logits_that_are_no_numbers(
    bench: Any, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    monkeypatch.setattr(DecoderModel, "runs_ahead", late)
    prompt, true = bench.prompt([bench.tokens(20, 1)]), DecoderModel.forward

    def ask() -> Outcome:
        return bench.answer(prompt, {}, exact_only=True, max_new_tokens=4)  # type: ignore[no-any-return]

    def forward(model: DecoderModel, *args: Any) -> Any:
        return [found if found is None else found * torch.nan for found in true(model, *args)]

    right = ask()
    with monkeypatch.context() as broken:
        broken.setattr(DecoderModel, "forward", forward)
        with pytest.raises(ChunkCacheError, match="no finite numbers"):
            ask()
    bench.wait_until_idle()
    assert ask().choices == right.choices


def test_what_was_run_in_vain_is_shared_with_nobody(
    bench: Any, monkeypatch: pytest.MonkeyPatch, ahead: list[int]
) -> None:
    """The next turn reads the answer's rows, and computes what a fresh prompt would."""
    monkeypatch.setattr(DecoderModel, "runs_ahead", True)
    prompt = bench.prompt([bench.tokens(20, 1)])
    wish = Sampling(temperature=1.5, seed=1, min_tokens=12, logit_bias={1: 100.0})
    outcome = bench.answer(prompt, {}, exact_only=True, salt=b"s", max_new_tokens=40, sampling=wish)
    assert outcome.finish_reason == "stop" and len(outcome.token_ids) == 13
    said = outcome.token_ids[:-1]
    follow_up = bench.prompt([bench.tokens(20, 1)], history=[*bench.question, *said])
    second = bench.answer(follow_up, {}, exact_only=True, salt=b"s")
    assert sum(p.prefix for p in second.plan.spans) == 48  # of 13 + 20 + 7 + 12, in whole pages
    fresh = bench.full(follow_up)
    assert float((second.first_logits - fresh.first_logits).abs().max()) < 2e-4


def test_requests_wait_for_room_and_are_cancelled_as_ever(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    ahead: list[int],
) -> None:  # fmt: skip
    monkeypatch.setattr(DecoderModel, "runs_ahead", True)
    bench = open_bench(tiny, kv_capacity_bytes=1 << 20, max_running=3)
    each = bench.engine.capacity_tokens // 5
    requests = [
        bench.submit(
            bench.prompt([]), {}, exact_only=True, max_new_tokens=each, salt=b"%d" % s,
            sampling=Sampling(temperature=1.0, n=3, seed=s, ignore_eos=True),
        )
        for s in range(4)
    ]  # fmt: skip
    bench.engine.cancel(requests[2])
    for number in (0, 1, 3):
        outcome = list(requests[number].events())[-1]
        assert [len(c.token_ids) for c in outcome.choices] == [each] * 3
    bench.wait_until_idle()


def test_a_draw_is_torchs_own() -> None:
    made = torch.Generator().manual_seed(5)
    for size in (1, 7, 4000):
        chances = torch.rand(size, dtype=torch.float64, generator=made)
        chances[::3] = 0.0 if size > 1 else 1.0
        ours, torchs = (torch.Generator().manual_seed(size) for _ in range(2))
        for _ in range(20):
            assert int(one_of(chances, ours)) == int(
                torch.multinomial(chances, 1, generator=torchs)
            )
