"""How far a command is: lines where nobody watches, on stderr alone, and none if so wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcache.cli import progress as module
from chunkcache.cli.progress import Bars, Lines, Silence, progress


class Clock:
    """Stands still unless it is set."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_there_is_a_line_for_each_tenth_and_no_more(clock: Clock) -> None:
    told: list[str] = []
    lines = Lines("chunks", tell=told.append, clock=clock)
    step = lines.step("warm", 1000)
    for done in range(1, 1001):
        clock.now_s += 0.125
        step(done, note="7 tokens/s")
    lines.end()
    assert told[0] == "warm: 1000 chunks"
    assert told[1:-1] == [f"warm: {n}00 of 1000 chunks, 7 tokens/s" for n in range(1, 10)]
    assert told[-1] == "warm: 1000 of 1000 chunks, in 125.0 s", "once, and not a second time"
    lines.end()
    assert len(told) == 11


def test_what_is_done_in_a_moment_has_two_lines(clock: Clock) -> None:
    told: list[str] = []
    lines = Lines("requests", tell=told.append, clock=clock)
    step = lines.step("reading", 10)
    for done in range(1, 11):
        step(done)
    lines.end()
    assert told == ["reading: 10 requests", "reading: 10 of 10 requests, in 0.0 s"]


def test_slow_work_is_told_of_every_half_minute(clock: Clock) -> None:
    told: list[str] = []
    step = Lines("records", tell=told.append, clock=clock).step("import")
    for second in range(1, 100):
        clock.now_s = float(second)
        step(second)
    assert told == ["import: begins", *(f"import: {n} records" for n in (30, 60, 90))]


def test_steps_follow_one_another_and_an_end_before_the_end_is_told_as_it_is(clock: Clock) -> None:
    told: list[str] = []
    lines = Lines("files", tell=told.append, clock=clock)
    step = lines.step("ingest")
    clock.now_s = 2.0
    step(1, total=4, note="a\x1b[2J.md")
    lines.step("page", 0)
    lines.end()
    assert told == [
        "ingest: begins", "ingest: 1 of 4 files, a\\x1b[2J.md", "ingest: 1 of 4 files, in 2.0 s",
        "page: 0 files", "page: 0 of 0 files, in 0.0 s",
    ]  # fmt: skip


def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress("chunks") as one:
        assert isinstance(one, Lines)
    with progress("chunks", quiet=True) as one:
        assert isinstance(one, Silence)
        one.step("warm")(1, total=2)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    with progress("chunks") as one:
        assert isinstance(one, Bars)
        one.step("warm")(1, total=2)


def test_what_takes_long_says_so_on_stderr_alone(
    run: Callable[..., Any], pages: Path, tmp_path: Path
) -> None:
    archive = str(tmp_path / "a.ccar")
    for command, unit in (
        (["ingest", str(pages)], "files"), (["warm", "--json"], "chunks"),
        (["fit-basis", "--chunks", "1"], "chunks"), (["check"], "records"),
        (["export", archive], "records"), (["import", archive], "records"),
    ):  # fmt: skip
        name = command[0]
        result = run(*command)
        said = [line for line in result.stderr.splitlines() if line.startswith(f"{name}: ")]
        assert said[0] == f"{name}: begins", result.stderr
        assert re.fullmatch(rf"{name}: (\d+)( of \1)? {unit}, in .* s", said[-1])
        assert not any(line.startswith(f"{name}: ") for line in result.stdout.splitlines())
        if "--json" in command:
            assert json.loads(result.stdout)["chunks"] == 2
    assert run("--quiet", "warm").stderr == ""
    told = run("--log-json", "warm").stderr.splitlines()
    lines = [json.loads(line) for line in told]
    assert {line["level"] for line in lines} == {"info"}
    assert lines[0]["event"] == "warm: begins"
