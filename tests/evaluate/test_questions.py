"""Question sets are read whole, or refused with the line that is wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.quality import parse_arms, read_questions


def test_fields_are_read_and_others_left_alone(question_file: Path) -> None:
    questions = read_questions(question_file)
    assert [q.id for q in questions] == [f"q{i}" for i in range(10)]
    first = questions[0]
    assert first.answers == ("the fox",) and first.supporting == {"1"}
    assert first.contexts is not None and [c.id for c in first.contexts] == ["0", "1", "2"]
    assert [q.id for q in read_questions(question_file, limit=2, skip=3)] == ["q3", "q4"]


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, name: str) -> None:
    """Others may stand in a text, and to JSON a carriage return is a blank."""
    text = '{"question": "a\u2028b\u2029c\x85d"}\r\n{"question":\r"second"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    assert [q.text for q in read_questions(path)] == ["a\u2028b\u2029c\x85d", "second"]


def test_gzip_and_the_shortest_form(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"question": "who?", "answers": "me"}\n')
    (question,) = read_questions(path)
    assert (question.id, question.answers, question.contexts) == ("1", ("me",), None)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("{", "line 2: line"),
        ("[]", "line 2: question"),
        ('{"question": 3}', "line 2: question"),
        ('{"question": "a", "n": ' + "9" * 5000 + "}", "line 2: line"),
        ('{"question": ' + "[" * 100_000, "line 2: line"),
        ('{"question": "a", "answers": [1]}', "line 2: answers"),
        ('{"question": "a", "contexts": [{"title": "t"}]}', "line 2: contexts"),
        ('{"question": "a", "contexts": ["t"]}', "line 2: contexts"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, names: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "fine?"}\n' + line + "\n")
    with pytest.raises(InvalidRequest, match=names):
        read_questions(path)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b'{"question": "who?"}\n' * 99))
    whole[10:14] = b"\xff" * 4
    (tmp_path / "q.jsonl.gz").write_bytes(whole)
    with pytest.raises(InvalidRequest, match=r"cannot read .*q\.jsonl\.gz"):
        read_questions(tmp_path / "q.jsonl.gz")


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n")
    with pytest.raises(InvalidRequest, match="has none"):
        read_questions(path)
    with pytest.raises(InvalidRequest, match="cannot read"):
        read_questions(tmp_path / "absent.jsonl")
    broken = tmp_path / "q.jsonl.gz"
    with gzip.open(broken, "wt") as file:
        file.write('{"question": "who?"}\n' * 1000)
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(InvalidRequest, match="cannot read"):
        read_questions(broken)


def test_arms() -> None:
    arms = parse_arms(["none", "question", "cfo@0.3", "question@0.1", "drift@0.02"], [0.1, 0.2])
    names = [arm.name for arm in arms]
    assert names == ["none", "question@0.1", "question@0.2", "cfo@0.3", "drift@0.02"]
    assert arms[1].options.budget == 0.1 and arms[1].options.policy == "question"
    target = arms[-1].options
    assert target.exactness is not None and target.exactness.drift == 0.02
    assert target.policy is None and target.budget is None
    wrongs = ("nonsense", "question@2", "question@x", "drift@0", "drift@", "drift@nan")
    for wrong in (*wrongs, "none@0.5", "all@0.1", "all@", "drift:0.3@0.02"):
        with pytest.raises(InvalidRequest):
            parse_arms([wrong], [0.1])
