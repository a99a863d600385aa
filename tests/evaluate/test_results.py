"""The results file: resumed where all is the same, refused in words where anything is not."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from chunkcache import ChunkCache
from chunkcache.errors import InvalidRequest, StoreError
from chunkcache.evaluate.quality import (
    Evaluation,
    Question,
    evaluate,
    parse_arms,
    read_lines,
    read_questions,
)
from chunkcache.evaluate.quality.results import ResultsFile
from chunkcache.protocol import GivenDocument
from chunkcache.repair.drift_curve import DriftCurve
from chunkcache.service.calibration import Calibration

NONE = tuple(parse_arms(["none"], []))
EVALUATION = Evaluation(NONE, max_tokens=2)
SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"  # where `str.splitlines` splits


@pytest.fixture
def question(question_file: Path) -> Question:
    (first,) = read_questions(question_file, limit=1)
    return first


def refused(*arguments: Any, **options: Any) -> str:
    """What `evaluate` says to a file that is not to be resumed; nothing in the file changes."""
    out = arguments[-1]
    before = out.read_bytes()
    with pytest.raises(InvalidRequest, match="name another file") as error:
        evaluate(*arguments, **options)
    assert out.read_bytes() == before
    return error.value.message


def test_another_question_under_the_same_id_is_not_taken_for_it(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    evaluate(cache, [question], EVALUATION, out)
    changes = {
        "the words": replace(question, text="which owl?"),
        "the gold answers": replace(question, answers=("the owl",)),
        "the passages": replace(question, contexts=(GivenDocument(id="0", text="Owls."),)),
    }
    for what, changed in changes.items():
        assert f"{what} of question 'q0' changed" in refused(cache, [changed], EVALUATION, out)


def test_questions_of_another_set_are_not_added(
    cache: ChunkCache, question_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    evaluate(cache, read_questions(question_file, limit=2), EVALUATION, out)
    others = read_questions(question_file, limit=2, skip=1)
    assert "other questions, 'q0' among them" in refused(cache, others, EVALUATION, out)
    fewer = read_questions(question_file, limit=1, skip=1)
    assert [line["id"] for line in evaluate(cache, fewer, EVALUATION, out)] == ["q1"]


def test_an_id_of_two_questions_is_refused(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="'q0', must be the id of one question alone"):
        twins = [question, replace(question, text="which owl?")]
        evaluate(cache, twins, EVALUATION, tmp_path / "out.jsonl")


def test_what_differs_in_the_evaluation_is_said(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    evaluate(cache, [question], EVALUATION, out)
    for said, other in {
        "top_k was null, is 2": replace(EVALUATION, top_k=2),
        'suffix was "", is "!"': replace(EVALUATION, suffix="!"),
        'arms was ["none"], is ["all", "none"]': replace(
            EVALUATION, arms=tuple(parse_arms(["all", "none"], []))
        ),
    }.items():
        assert said in refused(cache, [question], other, out)
    curve = DriftCurve((0.0,), (0.1,))
    cache.runtime.calibration = Calibration(curve, 8, 0.1, 0.1)
    assert ": calibration differs." in refused(cache, [question], EVALUATION, out)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"retrieval": {"chunk_tokens": 32}}, "retrieval.chunk_tokens was 64, is 32"),
        ({"retrieval": {"index": "hnsw"}}, 'retrieval.index was "flat", is "hnsw"'),
        ({"retrieval": {"top_k": 2}}, "retrieval.top_k was 3, is 2"),
        ({"repair": {"first_k_tokens": 8}}, "repair.first_k_tokens was 32, is 8"),
        ({"engine": {"overflow": "drop"}}, 'engine.overflow was "error", is "drop"'),
        ({"prompt": {"system": "Else."}}, "prompt.system differs"),
        ({"model": {"dtype": "bfloat16"}}, 'dtype was "float32", is "bfloat16"'),
        ({"model": {"gate": "off"}}, "reuse was true, is false"),
    ],
)
def test_what_differs_in_the_settings_is_said(
    cache: ChunkCache,
    tiny_settings: Callable[..., Any],
    question: Question,
    tmp_path: Path,
    section: dict[str, Any],
    said: str,
) -> None:
    out = tmp_path / "out.jsonl"
    evaluate(cache, [question], EVALUATION, out)
    with ChunkCache(tiny_settings(home=tmp_path / "other", **section)) as other:
        assert said in refused(other, [question], EVALUATION, out)


def test_another_version_starts_anew(
    cache: ChunkCache, question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    evaluate(cache, [question], EVALUATION, out)
    monkeypatch.setattr("chunkcache.evaluate.quality.facts.__version__", "9.9.9")
    assert 'is "9.9.9"' in refused(cache, [question], EVALUATION, out)


def test_a_changed_corpus_starts_anew_where_passages_are_retrieved(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    asked = [Question("r", "when do owls hunt?")]
    cache.ingest_texts([GivenDocument(id="owls", text="Owls hunt at night.")])
    out, given = tmp_path / "out.jsonl", tmp_path / "given.jsonl"
    first = evaluate(cache, asked, EVALUATION, out)
    brought = evaluate(cache, [question], EVALUATION, given)
    assert evaluate(cache, asked, EVALUATION, out) == first
    cache.ingest_texts([GivenDocument(id="owls", text="Owls hunt by day.")])
    assert ": corpus differs." in refused(cache, asked, EVALUATION, out)
    assert evaluate(cache, [question], EVALUATION, given) == brought  # brings its own passages


def test_a_file_of_something_else_is_left_alone(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    for content in ('{"arms": {}, "id": "q0"}\n', "my notes", "my\nnotes\n", "[1]\n", "\xff\n"):
        out.write_bytes(content.encode("latin-1"))
        with pytest.raises(InvalidRequest, match="another file"):
            evaluate(cache, [question], EVALUATION, out)
        assert out.read_bytes() == content.encode("latin-1")
    evaluate(cache, [question], EVALUATION, tmp_path / "good.jsonl")
    good = (tmp_path / "good.jsonl").read_text()
    out.write_text(good + good.split("\n")[1] + "\n")
    assert "question 'q0' twice" in refused(cache, [question], EVALUATION, out)
    out.write_text(good + good)
    assert "lines of several evaluations" in refused(cache, [question], EVALUATION, out)
    with pytest.raises(InvalidRequest, match="a file that can be written"):
        evaluate(cache, [question], EVALUATION, tmp_path)


def test_lines_end_at_line_feeds_alone(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    odd = replace(question, text=f"which{SEPARATORS}fox?", answers=(f"the{SEPARATORS}fox",))
    lines = evaluate(cache, [odd], EVALUATION, out)
    assert evaluate(cache, [odd], EVALUATION, out) == lines == read_lines(out)
    assert lines[0]["question"] == odd.text


def test_half_a_line_is_dropped_with_a_note_wherever_it_was_cut(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    asked = [question, replace(question, id="q1", text="¿qué zorro?")]
    first, second = evaluate(cache, asked, EVALUATION, out)
    whole = out.read_bytes()
    last = whole[: whole[:-1].rindex(b"\n") + 1]
    letter = whole.index("¿".encode()) + 1  # in the middle of a letter's bytes
    for kept in (len(last) + 5, letter, len(whole) - 1):
        out.write_bytes(whole[:kept])
        assert read_lines(out) == [first]
        with structlog.testing.capture_logs() as logs:
            lines = evaluate(cache, asked, EVALUATION, out)
        (note,) = [entry for entry in logs if entry["event"] == "evaluation_line_dropped"]
        assert note["size_bytes"] == kept - len(last) and note["path"] == str(out)
        assert lines[0] == first and lines[1]["question"] == second["question"]
        assert read_lines(out) == lines


def test_a_run_killed_at_its_first_line_begins_again(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    evaluate(cache, [question], EVALUATION, out)
    head = out.read_bytes().split(b"\n")[0]
    for kept in (0, 10, len(head)):
        out.write_bytes(head[:kept])
        lines = evaluate(cache, [question], EVALUATION, out)
        assert out.read_bytes().startswith(head + b"\n") and read_lines(out) == lines


def test_two_runs_do_not_write_to_one_file(
    cache: ChunkCache, question: Question, tmp_path: Path
) -> None:
    """The second one begins while the first is between two questions."""
    out = tmp_path / "out.jsonl"
    asked = [question, replace(question, id="q1")]
    errors = []

    def begin_another(done: int, total: int, eta_s: float) -> None:
        with pytest.raises(InvalidRequest, match="no other run is writing to") as error:
            evaluate(cache, asked, EVALUATION, out)
        errors.append(error.value.message)

    lines = evaluate(cache, asked, EVALUATION, out, on_progress=begin_another)
    assert len(errors) == 2 and str(out)[:40] in errors[0]
    assert read_lines(out) == lines == evaluate(cache, asked, EVALUATION, out)
    assert "facts" in json.loads(out.read_bytes().split(b"\n")[0])


def test_another_process_is_kept_out_until_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    code = (
        "import sys; from pathlib import Path;"
        "from chunkcache.evaluate.quality.results import ResultsFile;"
        "held = ResultsFile(Path(sys.argv[1]), {}); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        with pytest.raises(InvalidRequest, match="no other run is writing to"):
            ResultsFile(out, {})
        child.kill()
    with ResultsFile(out, {}) as results:
        assert results.known([]) == {}


def test_a_full_disk_is_said_and_the_run_is_resumed_when_there_is_room(tmp_path: Path) -> None:
    out, question = tmp_path / "out.jsonl", Question("q0", "which fox?", ())
    with ResultsFile(out, {}) as results:
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + 7, hard))
        try:
            with pytest.raises(StoreError, match=rf"out: cannot write {out}.* run it again"):
                results.append(question, {"id": "q0"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with ResultsFile(out, {}) as results:  # seven bytes of a line are dropped
        assert results.known([question]) == {}
        line = results.append(question, {"id": "q0"})
    assert read_lines(out) == [line]
