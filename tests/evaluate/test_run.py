"""The whole evaluation on a tiny model: every arm against full recompute, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.compare import cached_answer, full_answer
from chunkcache.evaluate.quality import (
    Beside,
    Evaluation,
    Question,
    evaluate,
    parse_arms,
    read_lines,
    read_questions,
    summarise,
)
from chunkcache.evaluate.quality.picture import draw_frontier, draw_reliability
from chunkcache.evaluate.quality.summary import Bin
from chunkcache.service.wishes import answer_request

ARMS = tuple(parse_arms(["none", "question@0.5", "cfo@0.5", "all"], []))


def test_every_row_repaired_is_no_drift_and_costs_are_honest(
    cache: ChunkCache, question_file: Path, tmp_path: Path
) -> None:
    questions = read_questions(question_file, limit=3)
    seen: list[tuple[int, int]] = []
    lines = evaluate(
        cache, questions, Evaluation(ARMS, max_tokens=6), tmp_path / "out.jsonl",
        on_progress=lambda done, total, eta_s: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for line in lines:
        every = line["arms"]["all"]
        assert every["mean_kl"] < 1e-6 and every["agreement"] == 1.0 and not every["changed"]
        assert every["residual"] == 0.0 and every["predicted_drift"] == 0.0
        assert every["repair_ratio"] == pytest.approx(1.0)
        none = line["arms"]["none"]
        assert none["mean_kl"] > 1e-4 and none["repair_ratio"] == 0.0 and none["residual"] == 1.0
        half = line["arms"]["question@0.5"]
        assert 0.0 < half["repair_ratio"] <= 0.5 and 0.0 < half["residual"] < 1.0
        assert line["arms"]["cfo@0.5"]["residual"] is None  # nobody asked the question
        assert line["chunks"] == 6  # each passage is two chunks


def test_a_stopped_run_goes_on_where_it_was(
    cache: ChunkCache, question_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    evaluation = Evaluation(ARMS[:1], max_tokens=4)
    first = evaluate(cache, read_questions(question_file, limit=2), evaluation, out)
    asked = cache.metrics.requests.labels("ok")._value.get()
    again = evaluate(cache, read_questions(question_file, limit=2), evaluation, out)
    assert again == first
    assert cache.metrics.requests.labels("ok")._value.get() == asked  # nothing was asked twice
    more = evaluate(cache, read_questions(question_file, limit=3), evaluation, out)
    assert more[:2] == first and read_lines(out) == more
    assert evaluate(cache, read_questions(question_file, limit=1), evaluation, out) == first[:1]


def test_an_arm_leaves_nothing_that_helps_the_next_one(
    cache: ChunkCache, question_file: Path, tmp_path: Path
) -> None:
    """`all` makes the whole prompt exact; were it shared, the arm after it would show no drift."""
    arms = tuple(parse_arms(["all", "none"], []))
    (line,) = evaluate(
        cache, read_questions(question_file, limit=1), Evaluation(arms, max_tokens=4),
        tmp_path / "out.jsonl",
    )  # fmt: skip
    assert line["arms"]["none"]["mean_kl"] > 1e-4
    assert line["arms"]["none"]["reusable_rows"] > 0


def test_questions_without_passages_retrieve_them(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    page = tmp_path / "owls.md"
    page.write_text("# Owls\n\n" + "Owls hunt at night and turn the head. " * 20)
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "when do owls hunt?"}\n')
    with ChunkCache(tiny_settings()) as cache:
        cache.ingest([page])
        (line,) = evaluate(
            cache, read_questions(path), Evaluation(ARMS[:1], max_tokens=4, top_k=2),
            tmp_path / "out.jsonl",
        )  # fmt: skip
    assert line["chunks"] == 2 and line["gold"] == []


def test_the_picture_is_a_png(cache: ChunkCache, question_file: Path, tmp_path: Path) -> None:
    lines = evaluate(
        cache, read_questions(question_file, limit=2), Evaluation(ARMS, max_tokens=4),
        tmp_path / "out.jsonl",
    )  # fmt: skip
    path = tmp_path / "new" / "frontier.png"
    draw_frontier(summarise(lines), path, title="tiny")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    draw_reliability([Bin(0.1, (0.2, 0.1, 0.3), 5)], path, title="tiny")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_another_cache_is_measured_against_the_same_references(
    cache: ChunkCache, tiny_settings: Callable[..., Any], question_file: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(home=tmp_path / "other", prompt={"born_after": "passages"})
    arms = tuple(parse_arms(["none", "all"], []))
    out, questions = tmp_path / "out.jsonl", read_questions(question_file, limit=1)
    with ChunkCache(settings) as other:
        beside = [Beside("passages", other, arms)]
        (line,) = evaluate(cache, questions, Evaluation(arms, max_tokens=4), out, beside=beside)
        again = evaluate(cache, questions, Evaluation(arms, max_tokens=4), out, beside=beside)
    assert again == [line]
    found = line["arms"]
    assert list(found) == ["none", "all", "none passages", "all passages"]
    assert found["all passages"]["mean_kl"] < 1e-6
    assert found["none passages"]["mean_kl"] != found["none"]["mean_kl"]
    # born after the head alone, the first of the chunks is exact and needs no repair
    assert found["none passages"]["reusable_rows"] > found["none"]["reusable_rows"]
    with pytest.raises(InvalidRequest, match="another file"):
        evaluate(cache, questions, Evaluation(arms, max_tokens=4), out)


def test_comparisons_keep_the_order_given(tiny_settings: Callable[..., Any]) -> None:
    """Else drift would be that of another prompt: here an earlier answer suggests another order."""
    texts = [f"Passage {i}: the quick brown fox jumps over the lazy dog." for i in range(3)]
    with ChunkCache(tiny_settings(retrieval={"order": "cache_friendly"})) as cache:
        cache.ask("why?", documents=texts[::-1], mode="exact")
        assert cache.ask("why?", documents=texts, mode="exact").report.notes  # it does suggest
        request = answer_request("why?", {"documents": texts, "policy": "all"})
        reference = full_answer(cache, request)
        found = cached_answer(cache, request, reference)
    for answer in (reference.answer, found.answer):
        assert [c.document_id for c in answer.citations] == ["0", "1", "2"]
    assert found.drift.mean_kl < 1e-6


def outcomes(cache: ChunkCache, questions: list[Question], *names: str, out: Path) -> Any:
    """Of every question and arm what was measured, but for times."""
    lines = evaluate(cache, questions, Evaluation(tuple(parse_arms(names, [])), max_tokens=4), out)
    return [
        {name: {k: v for k, v in arm.items() if k != "ttft_ratio"} for name, arm in arms.items()}
        for arms in (line["arms"] for line in lines)
    ]


def assert_equal_outcomes(found: Any, fresh: Any) -> None:
    """Equal but for rounding: the same rows may have run in other company."""
    for arm, expected in zip(found, fresh, strict=True):
        for field, value in expected.items():
            close = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            assert arm[field] == close, field


@pytest.mark.parametrize("born_after", ["head", "passages"])
def test_neither_the_order_of_arms_nor_the_storing_ask_helps_an_arm(
    tiny_settings: Callable[..., Any], question_file: Path, tmp_path: Path, born_after: str
) -> None:
    """Whatever is asked plainly leaves its whole prompt where the installation repairs all rows."""
    questions = read_questions(question_file, limit=2)
    names = ("none", "question@0.5", "all")
    found = []
    for run, order in enumerate((names, names[::-1], ("none",))):
        settings = tiny_settings(
            home=tmp_path / str(run),
            repair={"policy": "all"},
            prompt={"born_after": born_after},
            retrieval={"order": "cache_friendly"},
        )
        with ChunkCache(settings) as cache:
            found.append(outcomes(cache, questions, *order, out=tmp_path / f"{run}.jsonl"))
    forward, backward, alone = found
    for index in range(2):
        assert alone[index]["none"]["mean_kl"] > 1e-4
        assert_equal_outcomes([forward[index]["none"]], [alone[index]["none"]])
        assert_equal_outcomes(
            [backward[index][name] for name in names], [forward[index][name] for name in names]
        )


def test_what_was_asked_before_an_evaluation_does_not_help_it(
    tiny_settings: Callable[..., Any], question_file: Path, tmp_path: Path
) -> None:
    questions = read_questions(question_file, limit=1)
    found = []
    for run in ("fresh", "used"):
        with ChunkCache(tiny_settings(home=tmp_path / run)) as cache:
            if run == "used":
                given = list(questions[0].contexts or ())
                cache.ask(questions[0].text, documents=given, mode="exact")
            found.append(outcomes(cache, questions, "none", out=tmp_path / f"{run}.jsonl"))
    fresh, used = found
    assert fresh[0]["none"]["mean_kl"] > 1e-4
    assert_equal_outcomes([used[0]["none"]], [fresh[0]["none"]])


def test_an_evaluation_leaves_no_prefix_to_those_who_ask_after_it(
    cache: ChunkCache, question_file: Path, tmp_path: Path
) -> None:
    (question,) = read_questions(question_file, limit=1)
    evaluate(cache, [question], Evaluation(ARMS, max_tokens=4), tmp_path / "out.jsonl")
    given = list(question.contexts or ())
    report = cache.ask(question.text, documents=given, mode="exact").report
    assert {span.rung for span in report.spans if span.kind == "chunk"} == {"full"}


def test_answers_are_measured_as_read_through_the_codec_of_the_store(
    cache: ChunkCache, tiny_settings: Callable[..., Any], question_file: Path, tmp_path: Path
) -> None:
    arms, questions = tuple(parse_arms(["none", "all"], [])), read_questions(question_file, limit=2)
    coarse = tiny_settings(home=tmp_path / "other", store={"codec": "bits(k=2,v=2)"})
    with ChunkCache(coarse) as other:
        beside = [Beside("coarse", other, arms)]
        evaluation = Evaluation(arms, max_tokens=4)
        lines = evaluate(cache, questions, evaluation, tmp_path / "out.jsonl", beside=beside)
    for line in lines:
        found = line["arms"]
        assert found["all coarse"]["mean_kl"] < 1e-6  # all was recomputed
        assert found["none coarse"]["mean_kl"] != found["none"]["mean_kl"]
        # the first chunk would be exact where it stands, but for the codec
        assert found["none coarse"]["reusable_rows"] > found["none"]["reusable_rows"]
