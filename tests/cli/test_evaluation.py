"""`eval` and `calibrate`, from a file of questions to tables, pictures and a kept calibration."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcache.cli.evaluation import show_summary
from chunkcache.errors import ConfigError, InvalidRequest, NotFound
from chunkcache.evaluate.quality import ArmSummary, Summary


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Ten questions of three passages each."""
    path = tmp_path / "questions.jsonl"
    lines = [
        {"question": f"which fox is number {n}?", "answers": ["the fox"],
         "contexts": [{"title": f"T{i}", "text": f"Number {n}, passage {i}: the quick fox " * 3}
                      for i in range(3)]}
        for n in range(10)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def kept(tmp_path: Path) -> dict[str, Any]:
    """The one calibration of the installation."""
    (path,) = (tmp_path / "home" / "calibration").iterdir()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_eval_prints_a_table_and_a_line_and_can_be_resumed(
    run: Callable[..., Any], questions: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "lines.jsonl", tmp_path / "frontier.png"
    command = [
        "eval", str(questions), "--limit", "2", "--max-tokens", "4", "--out", str(out),
        "--policy", "none", "--policy", "gradual@0.5", "--policy", "cfo:0.3",
        "--policy", "focused@0.5", "--picture", str(picture),
    ]  # fmt: skip
    result = run(*command)
    shown, told = result.stdout, result.stderr.splitlines()
    assert told[0] == "eval: 2 questions" and told[-1].startswith("eval: 2 of 2 questions, in ")
    for name in ("none", "gradual@0.5", "cfo:0.3", "focused@0.5"):
        assert name in shown
    line = json.loads(shown.splitlines()[-1])
    assert line["file"] == str(questions) and line["questions"] == 2
    assert len(line["arms"]) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = out.read_text()
    again = run(*command).stdout
    assert out.read_text() == lines and json.loads(again.splitlines()[-1]) == line


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_asked(
    run: Callable[..., Any], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "lines.jsonl", questions.read_text()
    command = ["eval", str(questions), "--out", str(out), "--picture"]
    for place in (questions, tmp_path):
        with pytest.raises(InvalidRequest, match="--picture: got"):
            run(*command, str(place))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib is not installed"):
        run(*command, str(tmp_path / "new.png"))
    assert questions.read_text() == asked and not out.exists()


def test_eval_grades_nothing_where_no_answers_are_given(
    run: Callable[..., Any], questions: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in questions.read_text().splitlines()[:2]]
    questions.write_text("".join(json.dumps({**line, "answers": []}) + "\n" for line in lines))
    shown = run(
        "eval", str(questions), "--max-tokens", "2", "--policy", "none",
        "--out", str(tmp_path / "lines.jsonl"), "--picture", str(tmp_path / "frontier.png"),
    ).stdout  # fmt: skip
    assert "2 questions without gold answers: no F1, drift alone" in shown
    line = json.loads(shown.splitlines()[-1])
    assert line["graded"] == 0 and line["full_f1"] is None
    assert "f1" not in line["arms"][0]["figures"] and "mean_kl" in line["arms"][0]["figures"]


def test_the_tables_fit_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """At their widest: every figure has a sign, and the policy has a long name."""
    names = ("f1", "rouge_l", "first_kl", "mean_kl", "agreement", "changed", "unanswered",
             "repair_ratio", "ttft_ratio")  # fmt: skip
    figures = dict.fromkeys(names, (-0.1234, -0.2345, -0.0123))
    arms = tuple(ArmSummary(name, figures, (0.5, -0.5, 1.5)) for name in ("none", "cfo:0.45@0.15"))
    show_summary(Summary(100, 90, (0.4, 0.3, 0.5), (0.1, 0.0, 0.2), arms))
    lines = capsys.readouterr().out.split("\n")
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines if line.startswith("cfo:0.45@0.15")]
    assert rows[0] == ["cfo:0.45@0.15", *["-0.123"] * 5]
    assert rows[1] == ["cfo:0.45@0.15", "-0.123", "0.500", *["-0.123"] * 3]
    assert sum("[-0.234, -0.012]" in line for line in lines) == 4
    assert sum("[-0.500, 1.500]" in line for line in lines) == 2


def test_eval_does_not_take_another_sets_results_for_these(
    run: Callable[..., Any], questions: Path, tmp_path: Path
) -> None:
    command = ["eval", str(questions), "--limit", "1", "--max-tokens", "2", "--policy", "none",
               "--out", str(tmp_path / "lines.jsonl")]  # fmt: skip
    run(*command)
    questions.write_text(questions.read_text().replace("the fox", "the owl"))
    with pytest.raises(InvalidRequest, match="the gold answers of question '1' changed"):
        run(*command)


def test_questions_that_nothing_could_answer_are_refused_before_they_are_asked(
    run: Callable[..., Any], questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lines.jsonl"
    few = ["calibrate", str(questions), "--limit", "7", "--out", str(out)]
    with pytest.raises(InvalidRequest, match="questions: got 7, must be at least 8"):
        run("--model", "/there/is/none", *few)
    questions.write_text('{"question": "who?"}\n' * 2)
    with pytest.raises(NotFound, match="no documents in 'default', and 2 of 2 questions"):
        run("eval", str(questions), "--out", str(out))
    assert not out.exists()
    run("eval", str(questions), "--out", str(out), "--top-k", "0", "--max-tokens", "1")


def test_eval_names_what_it_does_not_know(run: Callable[..., Any], questions: Path) -> None:
    with pytest.raises(InvalidRequest, match="gradual"):
        run("eval", str(questions), "--policy", "fastest")


def test_calibrate_keeps_a_curve_and_alpha_until_it_is_asked_for_anew(
    run: Callable[..., Any], questions: Path, tmp_path: Path
) -> None:
    first, second = (str(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    command = ["calibrate", str(questions), "--limit", "8", "--max-tokens", "2"]
    shown = run(*command, "--cfo-drift", "1000", "--out", first).stdout
    # so short that a small budget does not pay for a probe: said, and the curve is of the others
    assert "nothing to fit at question@0.05" in shown
    assert "\n question@0.5 " in shown and "\n question@0 " in shown
    assert "α = 0.1 is the least" in shown
    assert kept(tmp_path)["cfo_alpha"] == 0.1 and kept(tmp_path)["questions"] == 8
    run(*command, "--out", second)
    assert kept(tmp_path)["cfo_alpha"] == 0.1
    # the lines of the first run are there: nothing is measured again
    shown = run(*command, "--cfo-drift", "0", "--out", first).stdout
    assert "no α keeps drift at 0 or less" in shown
    assert kept(tmp_path)["cfo_alpha"] is None
