"""Sampling: which tokens can be drawn, with which probabilities, and that draws are repeatable."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chunkcache.engine.sample import Sampler, chances_of, filtered_probabilities
from chunkcache.protocol import Sampling

# whole numbers make ties; halves make near-misses
logit_lists = st.lists(
    st.one_of(st.integers(-6, 6).map(float), st.sampled_from([-math.inf, 0.5, 30.0])),
    min_size=1,
    max_size=12,
).filter(lambda values: max(values) > -math.inf)


def softmax(logits: list[float], temperature: float) -> list[float]:
    """The slow twin, in Python's own double precision."""
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    return [w / math.fsum(weights) for w in weights]


@given(
    logits=logit_lists,
    wishes=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 5e-324, 1e-30, 1.0, 2.0]),
            "top_p": st.sampled_from([5e-324, 1e-9, 1.0]),
            "min_p": st.sampled_from([0.0, 5e-324, 1.0]),
            "repetition_penalty": st.sampled_from([0.01, 1.0, 10.0]),
            "frequency_penalty": st.sampled_from([-2.0, 5e-324, 2.0]),
            "logit_bias": st.sampled_from([{}, {0: -100.0}, {0: 100.0}]),
        }
    ),
)
@settings(deadline=None, max_examples=100)
def test_no_wish_that_is_taken_breaks_a_draw(logits: list[float], wishes: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(seed=1, **wishes), prompt_ids=[0])
    for _ in range(3):
        assert logits[sampler.pick(torch.tensor(logits)).read()[0]] > -math.inf


@pytest.mark.parametrize("penalty", [0.0, 5e-324, 0.009, 11.0])
def test_penalties_that_leave_no_number_are_refused(penalty: float) -> None:
    with pytest.raises(ValidationError, match="repetition_penalty"):
        Sampling(repetition_penalty=penalty)


@given(
    logits=logit_lists,
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.8, 0.95, 1.0]),
)
@settings(deadline=None, max_examples=300)
def test_the_kept_set_is_the_smallest_that_reaches_top_p_of_the_top_k(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    kept = filtered_probabilities(torch.tensor(logits), temperature, top_k, top_p)
    assert kept.dtype is torch.float64 and kept.shape == (len(logits),)
    assert kept.sum().item() == pytest.approx(1.0, abs=1e-12)
    probabilities = softmax(logits, temperature)
    chosen = {i for i, p in enumerate(kept.tolist()) if p > 0.0}
    assert chosen
    # nothing that was left out is likelier than something that was kept
    left_out = [probabilities[i] for i in range(len(logits)) if i not in chosen]
    least = min(probabilities[i] for i in chosen)
    assert max(left_out, default=0.0) <= least * (1 + 1e-12)
    # among the top k (zero probabilities aside), reaching p, and not without the least of them
    possible = sorted((p for p in probabilities if p > 0.0), reverse=True)
    limited = possible[: top_k or len(possible)]
    mass = math.fsum(probabilities[i] for i in chosen) / math.fsum(limited)
    assert len(chosen) <= len(limited)
    assert mass >= top_p - 1e-9
    if len(chosen) > 1 and top_p < 1.0:
        assert mass - least / math.fsum(limited) < top_p + 1e-9
    if top_p == 1.0:
        assert len(chosen) == len(limited)
    # what is kept keeps its proportions
    total = math.fsum(probabilities[i] for i in chosen)
    for i in chosen:
        assert kept[i].item() == pytest.approx(probabilities[i] / total, rel=1e-5)


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # of 0.4 and 0.3, the first alone is 57 %
    assert (filtered_probabilities(logits, 1.0, 2, 0.55) > 0).tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert (filtered_probabilities(logits, 1.0, 0, 0.55) > 0).tolist() == [True, True, False, False]


def test_a_token_that_reaches_top_p_exactly_needs_no_second() -> None:
    assert (filtered_probabilities(torch.zeros(4), 1.0, 0, 0.5) > 0).sum() == 2
    assert (filtered_probabilities(torch.zeros(2), 1.0, 0, 0.5) > 0).tolist() == [True, False]


def test_the_largest_logits_and_the_smallest_temperature_give_no_nan() -> None:
    huge = torch.tensor([3e38, -3e38, 3e38, -math.inf])
    for temperature in (2.0, 1e-3, 1e-30):
        kept = filtered_probabilities(huge, temperature, 0, 0.9)
        assert kept.tolist() == [0.5, 0.0, 0.5, 0.0]


def test_the_tail_of_a_large_vocabulary_is_cut_where_double_precision_says() -> None:
    """In fp32 the running sum of this many small numbers is off by more than the whole tail."""
    count = 150_000
    logits = torch.zeros(count)
    kept = filtered_probabilities(logits, 1.0, 0, 0.999)
    assert int((kept > 0).sum()) == pytest.approx(0.999 * count, abs=1)


def test_temperature_zero_takes_the_first_maximum_whatever_else_is_set() -> None:
    sampler = Sampler(Sampling(temperature=0.0, top_k=1, top_p=0.1, seed=3))
    assert sampler.pick(torch.tensor([1.0, 5.0, 5.0, 0.0])).read()[0] == 1


def draws(sampler: Sampler, count: int = 20) -> list[int]:
    return [sampler.pick(torch.zeros(1000)).read()[0] for _ in range(count)]


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, -(2**70), 10**30])
def test_the_same_seed_draws_the_same_tokens(seed: int) -> None:
    sampling = Sampling(temperature=1.0, seed=seed)
    assert draws(Sampler(sampling)) == draws(Sampler(sampling))


def test_another_seed_or_none_draws_other_tokens() -> None:
    seeded = [draws(Sampler(Sampling(temperature=1.0, seed=s))) for s in (1, 2, None, None)]
    assert len({tuple(tokens) for tokens in seeded}) == 4


def test_requests_do_not_disturb_each_other_nor_torchs_own_generator() -> None:
    def sampler() -> Sampler:
        return Sampler(Sampling(temperature=1.0, seed=5))

    alone = draws(sampler())
    state = torch.get_rng_state()
    first, second = sampler(), Sampler(Sampling(temperature=1.5, seed=6))
    together = []
    for _ in range(20):
        torch.rand(3)  # somebody else's randomness
        together += draws(first, 1)
        draws(second, 2)
    assert together == alone
    torch.set_rng_state(state)
    draws(sampler())
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_k=3, seed=11))
    wanted = [0.6, 0.3, 0.1, 0.0]
    logits = torch.tensor([0.54, 0.27, 0.09, 0.08]).log()
    counts = [0, 0, 0, 0]
    for _ in range(2000):
        counts[sampler.pick(logits).read()[0]] += 1
    for count, share in zip(counts, wanted, strict=True):
        # five standard deviations of a binomial count
        assert abs(count - 2000 * share) <= 5 * math.sqrt(2000 * share * (1 - share))


def test_greedy_and_a_tiny_temperature_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        logits = torch.randn(50, generator=generator)
        cold = Sampler(Sampling(temperature=1e-6, seed=1)).pick(logits).read()[0]
        assert cold == Sampler(Sampling()).pick(logits).read()[0]


def penalised_twin(
    logits: list[float], prompt: list[int], answer: list[int], sampling: Sampling
) -> list[float]:
    """Biases and penalties as vLLM's documentation has them, token by token."""
    values = []
    for token, value in enumerate(logits):
        value += sampling.logit_bias.get(token, 0.0)
        if token in prompt or token in answer:
            factor = sampling.repetition_penalty
            value = value / factor if value > 0 else value * factor
        value -= sampling.frequency_penalty * answer.count(token)
        if token in answer:
            value -= sampling.presence_penalty
        values.append(value)
    return values


@given(
    logits=st.lists(st.integers(-6, 6).map(float), min_size=2, max_size=9),
    data=st.data(),
    frequency=st.sampled_from([0.0, 0.5, 2.0, -1.0]),
    presence=st.sampled_from([0.0, 1.5, -2.0]),
    repetition=st.sampled_from([1.0, 1.3, 0.5, 4.0]),
)
@settings(deadline=None, max_examples=300)
def test_penalties_and_biases_are_what_the_twin_says(
    logits: list[float], data: st.DataObject, frequency: float, presence: float, repetition: float
) -> None:
    tokens = st.integers(0, len(logits) - 1)
    prompt = data.draw(st.lists(tokens, max_size=6))
    sampling = Sampling(
        frequency_penalty=frequency, presence_penalty=presence, repetition_penalty=repetition,
        logit_bias=data.draw(st.dictionaries(tokens, st.sampled_from([-100.0, -1.0, 2.5, 100.0]))),
    )  # fmt: skip
    sampler, answer = Sampler(sampling, prompt), list[int]()
    given_logits = torch.tensor(logits)
    for _ in range(8):
        expected = penalised_twin(logits, prompt, answer, sampling)
        token = sampler.pick(given_logits).read()[0]
        # equal logits may be told apart by the last bit: any of the largest is right
        assert expected[token] == pytest.approx(max(expected), abs=1e-4)
        answer.append(token)
    assert given_logits.tolist() == logits, "the caller's logits were changed"


def test_min_p_keeps_what_is_at_least_that_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    kept = filtered_probabilities(logits, 1.0, 0, 1.0, 0.29)
    assert kept.tolist() == pytest.approx([0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0.0])
    # after temperature: at ½ the third has 9 % of the first's
    assert (filtered_probabilities(logits, 0.5, 0, 1.0, 0.1) > 0).sum() == 2
    # top_p is a share of what is left: 0.5 / 0.75 reaches .6, alone
    assert (filtered_probabilities(logits, 1.0, 0, 0.6, 0.5) > 0).sum() == 1
    assert (filtered_probabilities(logits, 1.0, 0, 1.0, 1.0) > 0).sum() == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_outside_the_mask_is_drawn_whatever_is_asked_for(temperature: float) -> None:
    wish = Sampling(
        temperature=temperature, logit_bias={0: 100, 3: -100}, top_k=1, top_p=0.1, min_p=1.0, seed=1
    )
    allowed = torch.tensor([False, False, False, True])
    sampler = Sampler(wish)
    assert {
        sampler.pick(torch.tensor([9.0, 8.0, 7.0, -50.0]), allowed).read()[0] for _ in range(5)
    } == {3}


def test_a_choice_draws_as_a_request_with_the_next_seed_does() -> None:
    second = Sampler(Sampling(temperature=1.0, seed=4), index=1)
    assert draws(second) == draws(Sampler(Sampling(temperature=1.0, seed=5)))


def test_chances_are_the_models_own() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    chances = chances_of(logits, 0, 2)
    total = math.log(sum(math.exp(x) for x in (1.0, 3.0, 2.0)))
    assert (chances.token_id, chances.logprob) == (0, pytest.approx(1.0 - total))
    assert chances.top == ((1, pytest.approx(3.0 - total)), (2, pytest.approx(2.0 - total)))
    assert chances_of(logits, 0, 0).top == ()
    assert len(chances_of(logits, 0, 20).top) == 3


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_drawn_from_no_numbers_says_so(temperature: float, wrong: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=1), [])
    drawn = sampler.pick(torch.tensor([1.0, wrong, 2.0]))
    token, is_sound = drawn.read()
    assert not is_sound
    assert 0 <= token < 3  # may be queued before anybody has looked
    assert sampler.pick(torch.tensor([-math.inf, -math.inf, 2.0])).read() == (2, True)
