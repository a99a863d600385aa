"""Tokens that are read when the next row has been queued already: the same answers as at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from chunkcache.engine import sample
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.sample import Drawn, one_of
from chunkcache.errors import NotFinite
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

        def read(self) -> tuple[int, bool]:
            gaps.append(passes[0] - self._drawn_at)
            return super().read()

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


@pytest.fixture
def poisoned(bench: Any) -> Callable[[], AbstractContextManager[None]]:
    """While it lasts, whatever starts at a token's embedding computes what are no numbers."""

    @contextmanager
    def context() -> Iterator[None]:
        runner, true = bench.model.runner, bench.model.runner.embed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "embed", lambda ids: true(ids) * torch.nan)
            yield

    return context


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("choices", [1, 2])
def test_what_are_no_numbers_is_neither_answered_nor_shared(
    bench: Any, monkeypatch: pytest.MonkeyPatch, poisoned: Any, late: bool, choices: int
) -> None:
    """Its pages would have been found by whoever asks the same under the same salt."""
    monkeypatch.setattr(DecoderModel, "runs_ahead", late)
    prompt = bench.prompt([bench.tokens(90, 1)])
    wish = Sampling(n=choices)

    def ask(salt: bytes) -> Outcome:
        return bench.answer(  # type: ignore[no-any-return]
            prompt, {}, exact_only=True, max_new_tokens=4, salt=salt, sampling=wish
        )

    right = ask(b"another")
    with poisoned(), pytest.raises(NotFinite, match="logits that are not finite"):
        ask(b"same")
    bench.wait_until_idle()
    assert ask(b"same").choices == right.choices
    assert ask(b"same").cost_ratio < 1, "what is sound is shared"


def test_what_are_no_numbers_is_measured_and_not_shared(bench: Any, poisoned: Any) -> None:
    """Who keeps logits judges them: no error, and still nothing for others."""
    prompt = bench.prompt([bench.tokens(90, 1)])
    wish = {"exact_only": True, "max_new_tokens": 2, "salt": b"same"}
    right = bench.answer(prompt, {}, **wish | {"salt": b"another"})
    with poisoned():
        assert bench.answer(prompt, {}, keep_logits=True, **wish).step_logits.isnan().any()
    bench.wait_until_idle()
    assert bench.answer(prompt, {}, **wish).choices == right.choices


def test_a_passage_of_no_numbers_leaves_no_pages(bench: Any, poisoned: Any) -> None:
    first, second = bench.tokens(90, 1), bench.tokens(40, 2)
    with poisoned(), pytest.raises(NotFinite, match="keys or values of a passage"):
        bench.record(second, prior=[first], salt=b"same")
    bench.wait_until_idle()
    found = bench.record(second, prior=[first], salt=b"same")
    assert found.is_finite
    assert torch.equal(found.kv, bench.record(second, prior=[first], salt=b"other").kv)


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
