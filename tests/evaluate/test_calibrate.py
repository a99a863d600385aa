"""From measured questions to a promise about drift, and what the service makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from chunkcache import ChunkCache
from chunkcache.chunk import Rung
from chunkcache.errors import ConfigError, InvalidRequest
from chunkcache.evaluate.quality import (
    Evaluation,
    alpha_arms,
    calibrate,
    calibrate_alpha,
    calibration_arms,
    evaluate,
    parse_arms,
    read_questions,
)
from chunkcache.evaluate.quality.calibrate import CALIBRATION_ALPHAS
from chunkcache.repair.drift_curve import DriftCurve
from chunkcache.service.calibration import (
    CALIBRATION_VERSION,
    Calibration,
    calibration_path,
    load_calibration,
    store_calibration,
)

CURVE = DriftCurve((0.0, 0.3, 0.8), (0.01, 0.1, 0.5))
CALIBRATION = Calibration(CURVE, questions=5, held_out_predicted=0.1, held_out_measured=0.12)
TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " * 2 for i in range(4)]


def line(residuals: list[float], drifts: list[float]) -> dict[str, Any]:
    arms = {
        arm.name: {"residual": r, "mean_kl": d, "reusable_rows": 10}
        for arm, r, d in zip(calibration_arms(), residuals, drifts, strict=True)
    }
    return {"arms": arms}


def test_halves_predict_each_other_and_the_curve_is_of_all() -> None:
    residuals = [1.0, 0.8, 0.6, 0.5, 0.3, 0.1]
    evens = [line(residuals, [r / 2 for r in residuals]) for _ in range(4)]
    odds = [line(residuals, [r * 1.5 for r in residuals]) for _ in range(4)]
    mixed = [one for pair in zip(evens, odds, strict=True) for one in pair]
    calibration, reliability = calibrate(mixed)
    assert calibration.questions == 8
    assert [calibration.curve.drift_at(r) for r in residuals] == pytest.approx(residuals)
    # each half was predicted by the other: wrong question by question, right in the mean
    assert [r.predicted for r in reliability] == pytest.approx(residuals)
    assert [r.measured for r in reliability] == pytest.approx(residuals)


def test_a_prediction_is_of_a_curve_that_has_not_seen_the_question() -> None:
    """Odd questions drift and even ones do not: whoever saw them would predict that."""
    residuals = [1.0, 0.8, 0.6, 0.5, 0.3, 0.1]
    still, drifting = line([r / 2 for r in residuals], [0.0] * 6), line(residuals, [1.0] * 6)
    _, reliability = calibrate([still, drifting] * 4 + [still])
    # the five still ones are predicted 1 by the curve of the drifting, and the other four 0
    assert [r.predicted for r in reliability] == pytest.approx([5 / 9] * 6)
    only = [line(residuals, [float(i == 1)] * 6) for i in range(9)]
    _, reliability = calibrate(only)  # its half, of four, predicts a quarter of the other five
    assert [r.predicted for r in reliability] == pytest.approx([5 / 4 / 9] * 6)


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least 8"):
        calibrate([line([1.0] * 6, [0.1] * 6)] * 7)
    unused = line([1.0] * 6, [0.1] * 6)
    for arm in unused["arms"].values():
        arm["reusable_rows"] = 0
    with pytest.raises(InvalidRequest, match="at least 8"):
        calibrate([unused] * 20)


def test_a_calibration_belongs_to_a_model_and_a_prompt(tiny_settings: Any) -> None:
    settings = tiny_settings()
    store_calibration(settings, b"model", CALIBRATION)
    assert load_calibration(settings, b"model") == CALIBRATION
    assert load_calibration(settings, b"other") is None
    assert load_calibration(tiny_settings(prompt={"system": "Else."}), b"model") is None
    assert load_calibration(tiny_settings(prompt={"born_after": "passages"}), b"model") is None


OURS = f'{{"calibration_version": {CALIBRATION_VERSION}, "curve": '
BROKEN = ["", "[]", "{}", OURS + "{}}", OURS + '{"residuals": [0.1], "drifts": [-1]}}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_calibration_is_named(tiny_settings: Any, content: str) -> None:
    settings = tiny_settings()
    path = store_calibration(settings, b"model", CALIBRATION)
    path.write_text(content)
    with pytest.raises(ConfigError, match="is not a calibration"):
        load_calibration(settings, b"model")


def test_of_another_version_it_is_as_if_there_were_none(tiny_settings: Any) -> None:
    settings = tiny_settings()
    path = store_calibration(settings, b"model", CALIBRATION)
    path.write_text(
        path.read_text().replace(
            f'"calibration_version": {CALIBRATION_VERSION}', '"calibration_version": 0'
        )
    )
    with structlog.testing.capture_logs() as logs:
        assert load_calibration(settings, b"model") is None
    assert [(e["event"], e["path"]) for e in logs] == [("calibration_outdated", str(path))]
    assert path == calibration_path(settings, b"model")


def test_a_target_without_a_calibration_is_refused(cache: ChunkCache) -> None:
    with pytest.raises(InvalidRequest, match="chunkcache calibrate"):
        cache.ask("why?", documents=TEXTS, exactness={"drift": 0.1})
    assert cache.ask("why?", documents=TEXTS, budget=0.3).report.predicted_drift is None


def test_a_target_stands_alone(cache: ChunkCache) -> None:
    for other in ({"budget": 0.1}, {"policy": "cfo"}, {"mode": "exact"}):
        with pytest.raises(InvalidRequest, match=r"\. exactness chooses policy and budget"):
            cache.ask("why?", documents=TEXTS, exactness={"drift": 0.1}, **other)
    for wrong in (0.0, -1.0, None):
        with pytest.raises(InvalidRequest, match=r"exactness\.drift"):
            cache.ask("why?", documents=TEXTS, exactness={"drift": wrong})


def test_the_budget_follows_the_target(cache: ChunkCache) -> None:
    cache.runtime.calibration = CALIBRATION
    cache.ask("why?", documents=TEXTS)
    loose = cache.ask("why?", documents=TEXTS, exactness={"drift": 0.6}).report
    assert loose.recomputed_tokens == 0 and loose.predicted_drift == 0.5
    middle = cache.ask("why?", documents=TEXTS, exactness={"drift": 0.2}).report
    assert middle.recomputed_tokens > 0 and middle.rung is Rung.REPAIRED
    assert middle.predicted_drift is not None and middle.predicted_drift <= 0.2
    out_of_reach = cache.ask("why?", documents=TEXTS, exactness={"drift": 0.001}).report
    assert out_of_reach.predicted_drift == 0.0
    assert {s.rung for s in out_of_reach.spans if s.kind == "chunk"} <= {Rung.FULL, Rung.EXACT}


def test_plain_budgets_get_a_prediction_too(cache: ChunkCache) -> None:
    cache.runtime.calibration = CALIBRATION
    cache.ask("why?", documents=TEXTS)
    assert cache.ask("why?", documents=TEXTS[::-1], policy="none").report.predicted_drift == 0.5
    most = cache.ask("why?", documents=TEXTS[::-1], budget=0.8).report
    assert most.predicted_drift in {0.01, 0.1}
    assert cache.ask("why?", documents=TEXTS, policy="cfo").report.predicted_drift is None
    assert cache.ask("why?", documents=TEXTS, mode="full").report.predicted_drift == 0.0


def alpha_line(drifts: list[float], rows: int = 10) -> dict[str, Any]:
    arms = {
        arm.name: {
            "repair_ratio": (arm.alpha or 0) / 2 if rows else 0.0,
            "mean_kl": drift,
            "reusable_rows": rows,
        }
        for arm, drift in zip(alpha_arms(), drifts, strict=True)
    }
    return {"arms": arms}


@pytest.mark.parametrize(
    ("target", "alpha"),
    [(1.0, 0.1), (0.6, 0.2), (0.5, 0.2), (0.45, 0.45), (0.31, 0.45), (0.11, 1.0), (0.09, None)],
)
def test_alpha_is_the_least_that_keeps_to_the_target(target: float, alpha: float | None) -> None:
    """Means of two questions; the rise from the second α to the third is noise, and is levelled."""
    even = [0.8, 0.5, 0.7, 0.4, 0.2, 0.2, 0.2]
    odd = [0.8, 0.3, 0.5, 0.2, 0.2, 0.2, 0.0]
    found, steps = calibrate_alpha([alpha_line(even), alpha_line(odd)], target)
    assert found == alpha
    assert [s.measured for s in steps] == pytest.approx([0.8, 0.4, 0.6, 0.3, 0.2, 0.2, 0.1])
    assert [s.fitted for s in steps] == pytest.approx([0.8, 0.5, 0.5, 0.3, 0.2, 0.2, 0.1])
    assert [s.cost for s in steps] == pytest.approx([a / 2 for a in CALIBRATION_ALPHAS])


def test_questions_with_nothing_to_repair_do_not_dilute_alpha() -> None:
    """Where α = 0.6 is right, three exact questions to one would make 0.1 look good enough."""
    drifting = alpha_line([0.8, 0.6, 0.5, 0.4, 0.2, 0.2, 0.0])
    exact = alpha_line([0.0] * 7, rows=0)
    alone, _ = calibrate_alpha([drifting], 0.2)
    found, steps = calibrate_alpha([exact, drifting, exact, exact], 0.2)
    assert found == alone == 0.6
    assert [s.measured for s in steps] == pytest.approx([0.8, 0.6, 0.5, 0.4, 0.2, 0.2, 0.0])
    assert [s.cost for s in steps] == pytest.approx([a / 2 for a in CALIBRATION_ALPHAS])
    with pytest.raises(InvalidRequest, match="at least 1 whose answer"):
        calibrate_alpha([exact], 0.2)


def test_alpha_is_the_requests_or_the_settings_or_the_calibrated_or_the_default(
    cache: ChunkCache, tiny_settings: Any, tmp_path: Path
) -> None:
    def rows(asked: ChunkCache, alpha: float | None = None) -> int:
        options = {"policy": "cfo", "budget": 1.0, "cfo_alpha": alpha}
        return asked.ask("why?", documents=TEXTS[::-1], **options).report.recomputed_tokens

    cache.ask("why?", documents=TEXTS)
    by_alpha = {alpha: rows(cache, alpha) for alpha in (0.2, 0.4, 0.7)}
    assert by_alpha[0.2] < by_alpha[0.4] < by_alpha[0.7]
    assert rows(cache) == by_alpha[0.4]
    cache.runtime.calibration = replace(CALIBRATION, cfo_alpha=0.7)
    assert rows(cache) == by_alpha[0.7] and rows(cache, 0.2) == by_alpha[0.2]
    other = tiny_settings(home=tmp_path / "other", repair={"cfo_alpha": 0.2})
    with ChunkCache(other) as told:
        told.runtime.calibration = replace(CALIBRATION, cfo_alpha=0.7)
        told.ask("why?", documents=TEXTS)
        assert rows(told) == by_alpha[0.2] and rows(told, 0.4) == by_alpha[0.4]


def test_alpha_of_a_policy_that_has_none_is_refused(cache: ChunkCache) -> None:
    for options in ({}, {"policy": "question"}, {"exactness": {"drift": 0.1}}):
        with pytest.raises(InvalidRequest, match=r"\. cfo_alpha is of the policies cfo and"):
            cache.ask("why?", documents=TEXTS, cfo_alpha=0.3, **options)
    for wrong in (0.0, 1.1, -1):
        with pytest.raises(InvalidRequest, match="cfo_alpha"):
            cache.ask("why?", documents=TEXTS, policy="cfo", cfo_alpha=wrong)


def test_arms_with_an_alpha() -> None:
    names = ["cfo:0.3", "cfo:0.3@0.15", "focused:1@0.5", "cfo@0.15"]
    arms = parse_arms(names, [])
    assert [arm.name for arm in arms] == names
    assert [(arm.policy, arm.budget, arm.alpha) for arm in arms] == [
        ("cfo", 1.0, 0.3), ("cfo", 0.15, 0.3), ("focused", 0.5, 1.0), ("cfo", 0.15, None),
    ]  # fmt: skip
    assert [arm.options.cfo_alpha for arm in arms] == [0.3, 0.3, 1.0, None]
    for wrong in ("question:0.3", "cfo:", "cfo:0", "cfo:2@0.1", "none:0.3"):
        with pytest.raises(InvalidRequest):
            parse_arms([wrong], [])


def test_alpha_end_to_end(cache: ChunkCache, question_file: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(tuple(alpha_arms()), max_tokens=4)
    questions = read_questions(question_file, limit=3)
    lines = evaluate(cache, questions, evaluation, tmp_path / "out.jsonl")
    _, steps = calibrate_alpha(lines, 0.0)
    costs = [step.cost for step in steps]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    alpha, _ = calibrate_alpha(lines, steps[2].fitted)
    assert alpha is not None and alpha <= steps[2].alpha


def test_end_to_end(cache: ChunkCache, question_file: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(tuple(calibration_arms()), max_tokens=4)
    lines = evaluate(cache, read_questions(question_file), evaluation, tmp_path / "out.jsonl")
    calibration, reliability = calibrate(lines)
    residuals = [row.residual for row in reliability]
    assert residuals == sorted(residuals, reverse=True) and residuals[0] == 1.0
    assert calibration.curve.drift_at(1.0) > 0
