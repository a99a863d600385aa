"""Answer scores, the field's usual definitions, and the intervals around their means."""

from __future__ import annotations

import numpy as np
import pytest

from chunkcache.evaluate.quality.scores import exact_match, is_unanswered, rouge_l, token_f1
from chunkcache.evaluate.quality.summary import (
    bootstrap,
    paired_difference,
    reliability_bins,
    summarise,
)


@pytest.mark.parametrize(
    ("text", "gold", "f1"),
    [
        ("The Eiffel Tower.", ("eiffel tower",), 1.0),
        ("in Paris, France", ("Paris",), 0.5),
        ("London", ("Paris", "london"), 1.0),
        ("", ("Paris",), 0.0),
        ("Paris Paris", ("Paris",), 2 / 3),
        ("anything", (), 0.0),
    ],
)
def test_token_f1(text: str, gold: tuple[str, ...], f1: float) -> None:
    assert token_f1(text, gold) == pytest.approx(f1)


def test_exact_match_ignores_case_articles_and_punctuation() -> None:
    assert exact_match("The  Eiffel-Tower!", ("eiffeltower",)) == 1.0
    assert exact_match("Eiffel Towers", ("Eiffel Tower",)) == 0.0


def test_rouge_l_is_of_the_longest_common_subsequence() -> None:
    assert rouge_l("a b c d", "a b c d") == 1.0
    assert rouge_l("x y", "a b") == 0.0
    # longest common subsequence "police killed": precision 2/3, recall 2/4
    assert rouge_l("police killed gunman", "police man killed him") == pytest.approx(4 / 7)


def test_refusals_are_recognised() -> None:
    assert is_unanswered("The documents do not contain the answer.")
    assert is_unanswered("") and not is_unanswered("Paris")


def test_an_interval_holds_the_mean_and_narrows_with_more_values() -> None:
    values = np.random.default_rng(3).normal(5.0, 1.0, 400).tolist()
    mean, low, high = bootstrap(values)
    assert low < mean < high and mean == pytest.approx(np.mean(values))
    few = bootstrap(values[:20])
    assert few[2] - few[1] > high - low
    # the normal theory's interval of the same data
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.15)
    assert bootstrap([2.0]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def _line(full: float, arms: dict[str, float], *gold: str) -> dict[str, object]:
    base = dict.fromkeys(
        ("em", "rouge_l", "first_kl", "mean_kl", "agreement", "changed", "unanswered",
         "repair_ratio", "ttft_ratio"), 0.5,
    )  # fmt: skip
    return {
        "gold": list(gold),
        "full": {"f1": full},
        "no_documents": {"f1": 0.1},
        "arms": {name: {**base, "f1": f1} for name, f1 in arms.items()},
    }


def test_losses_are_paired() -> None:
    lines = [_line(1.0, {"a": 0.9, "b": 0.1}, "x"), _line(0.2, {"a": 0.1, "b": 0.2}, "y", "z")]
    summary = summarise(lines)
    assert summary.questions == summary.graded == 2
    assert summary.full_f1 is not None and summary.full_f1[0] == pytest.approx(0.6)
    assert [arm.name for arm in summary.arms] == ["a", "b"]
    # both questions lose exactly 0.1 in arm a: no spread at all
    assert summary.arms[0].f1_loss == pytest.approx((0.1, 0.1, 0.1))
    assert paired_difference(lines, "f1", "a", "b")[0] == pytest.approx(0.35)


def test_questions_without_gold_answers_are_not_graded() -> None:
    mixed = summarise([_line(0.8, {"a": 0.6}, "x"), _line(0.0, {"a": 0.0})])
    assert (mixed.questions, mixed.graded) == (2, 1)
    assert mixed.full_f1 == pytest.approx((0.8, 0.8, 0.8))
    assert mixed.arms[0].f1_loss == pytest.approx((0.2, 0.2, 0.2))
    none = summarise([_line(0.0, {"a": 0.0})])
    assert none.graded == 0 and none.full_f1 is None and none.no_documents_f1 is None
    assert none.arms[0].f1_loss is None
    assert "f1" not in none.arms[0].figures and none.arms[0].figures["mean_kl"][0] == 0.5


def test_an_arm_that_a_line_lacks_is_left_out() -> None:
    lines = [_line(1.0, {"a": 0.9, "b": 0.1}), _line(0.2, {"a": 0.1})]
    assert [arm.name for arm in summarise(lines).arms] == ["a"]


def answers(*pairs: tuple[float | None, float], residual: float = 0.5) -> dict[str, object]:
    """A line of arms with what was predicted and measured."""
    found = [{"predicted_drift": p, "mean_kl": m, "residual": residual} for p, m in pairs]
    return {"arms": {str(number): arm for number, arm in enumerate(found)}}


def test_answers_of_the_same_expectation_stay_in_one_bin() -> None:
    lines = [
        answers((0.1, 0.0), (0.3, 0.3), (None, 9.0)), answers((0.1, 0.2)),
        answers((0.0, 9.0), residual=0.0), answers((0.1, 0.1), (0.2, 0.4)),
    ]  # fmt: skip
    bins = reliability_bins(lines, count=5)
    assert [(b.predicted, b.answers) for b in bins] == [
        (pytest.approx(0.1), 3), (pytest.approx(0.2), 1), (pytest.approx(0.3), 1)
    ]  # fmt: skip
    assert bins[0].measured[0] == pytest.approx(0.1)
    (one,) = reliability_bins(lines, count=1)
    assert one.answers == 5 and one.predicted == pytest.approx(0.16)
    assert reliability_bins([answers((None, 1.0))]) == []


def test_no_drift_that_was_predicted_of_an_inexact_answer_is_a_prediction() -> None:
    (one,) = reliability_bins([answers((0.0, 0.4)), answers((0.0, 9.0), residual=0.0)])
    assert (one.predicted, one.measured[0], one.answers) == (0.0, 0.4, 1)
