"""What a program that opens a cache finds on its stdout and stderr."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import structlog

from chunkcache import ChunkCache


@pytest.fixture(autouse=True)
def not_configured() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def say_all() -> None:
    log = structlog.get_logger("chunkcache")
    log.debug("a_trifle")
    log.info("some_news")
    log.warning("a_worry", of="this")
    log.error("a_fault")


def test_warnings_go_to_stderr_and_nothing_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChunkCache.open(home=tmp_path / "home", cache=tmp_path / "cache"):
        say_all()
        out, err = capsys.readouterr()
        assert out == ""
        assert "a_worry" in err and "a_fault" in err
        assert "a_trifle" not in err and "some_news" not in err
        with redirect_stderr(io.StringIO()) as elsewhere:
            say_all()
    assert "a_worry" in elsewhere.getvalue()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("first", [True, False])
def test_what_the_program_has_set_up_stays_or_takes_its_place(tmp_path: Path, first: bool) -> None:
    written = io.StringIO()

    def configure() -> None:
        structlog.reset_defaults()
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(written))

    if first:
        configure()
    with ChunkCache.open(home=tmp_path / "home", cache=tmp_path / "cache"):
        if not first:
            configure()
        say_all()
    assert all(event in written.getvalue() for event in ("a_trifle", "some_news", "a_worry"))
