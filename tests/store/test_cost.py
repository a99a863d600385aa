"""Load or recompute: decided by measurements only, and measured again now and then."""

from __future__ import annotations

import pytest

from chunkcache.store.cost import CostModel


@pytest.fixture
def slow_disk() -> CostModel:
    cost = CostModel()
    cost.observe_load("disk", 100, 1.0)
    cost.observe_prefill(1000, 1.0)
    return cost


def test_loading_pays_until_both_rates_were_measured() -> None:
    cost = CostModel()
    assert cost.load_pays("disk", 100)
    cost.observe_load("disk", 1, 1000.0)  # as slow as can be
    assert cost.load_pays("disk", 100)
    only_prefill = CostModel()
    only_prefill.observe_prefill(1000, 0.001)
    assert only_prefill.load_pays("disk", 100)


def test_loading_pays_when_it_is_faster_than_the_rows_it_saves() -> None:
    cost = CostModel()
    cost.observe_load("disk", 1000, 1.0)
    cost.observe_prefill(840, 1.0)
    assert cost.load_pays("disk", 64)  # 1/1000 < 0.85/840
    assert not cost.load_pays("disk", 64, fix_fraction=0.2)  # 1/1000 > 0.8/840
    assert cost.load_pays("host", 64, fix_fraction=0.2)  # another tier has its own rate


def test_a_slow_tier_is_tried_again_once_in_sixteen_questions(slow_disk: CostModel) -> None:
    answers = []
    for _ in range(48):
        answers.append(slow_disk.load_pays("disk", 64))
        if answers[-1]:
            slow_disk.observe_load("disk", 100, 1.0)
    assert [at for at, pays in enumerate(answers) if pays] == [15, 31, 47]


def test_a_trial_that_measured_nothing_stays_due(slow_disk: CostModel) -> None:
    for _ in range(15):
        assert not slow_disk.load_pays("disk", 64)
    assert slow_disk.load_pays("disk", 64)
    assert slow_disk.load_pays("disk", 64)  # the record was absent: nothing was measured
    slow_disk.observe_load("disk", 100, 1.0)
    assert not slow_disk.load_pays("disk", 64)


def test_a_tier_that_became_fast_is_used_again(slow_disk: CostModel) -> None:
    assert not slow_disk.load_pays("disk", 64)
    for _ in range(40):
        slow_disk.observe_load("disk", 100_000, 1.0)
    assert slow_disk.load_pays("disk", 64)


def test_rates_are_decayed_totals_in_which_large_samples_weigh_more() -> None:
    cost = CostModel(smoothing=0.5)
    assert cost.load_tokens_per_s("disk") is None and cost.prefill_tokens_per_s() is None
    cost.observe_load("disk", 100, 1.0)
    assert cost.load_tokens_per_s("disk") == pytest.approx(100)
    cost.observe_load("disk", 400, 1.0)
    assert cost.load_tokens_per_s("disk") == pytest.approx((25 + 200) / (0.25 + 0.5))
    cost.observe_prefill(10, 2.0)
    assert cost.prefill_tokens_per_s() == pytest.approx(5)


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (10, 0.0), (-1, 1.0), (10, -1.0)])
def test_samples_without_a_rate_are_left_out(tokens: int, seconds: float) -> None:
    cost = CostModel()
    cost.observe_load("disk", tokens, seconds)
    cost.observe_prefill(tokens, seconds)
    assert cost.load_tokens_per_s("disk") is None and cost.prefill_tokens_per_s() is None
