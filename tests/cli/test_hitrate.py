"""`hitrate`, from a trace to tables, a picture, exports and the page's curve."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chunkcache.cli.app import app
from chunkcache.console.lookup_log import LoggedPart, LookupLog, RecordFacts
from chunkcache.console.sizing import read_sizing
from chunkcache.errors import InvalidRequest

TRAFFIC = "zipf:chunks=40,requests=40,per_request=3"


@pytest.fixture
def hitrate(tmp_path: Path) -> Callable[..., Any]:
    """Runs the command on an empty home folder; no model is needed, so none is made."""

    def invoke(*arguments: str, code: int = 0) -> Any:
        command = ["--home", str(tmp_path / "home"), "hitrate", *arguments]
        result = CliRunner().invoke(app, command)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


def test_a_trace_becomes_tables_advice_and_a_line(hitrate: Callable[..., Any]) -> None:
    result = hitrate(TRAFFIC, "--memory", "10%", "--memory", "50%", "--disk", "100%")
    *table, last = result.stdout.splitlines()
    assert re.search(r"(?m)^advice: 40 requests$", result.stderr) and "of 40 requests, in" in (
        result.stderr
    )
    line = json.loads(last)
    assert line["facts"]["requests"] == 40 and len(line["curve"]) == 4
    rows = [row.split() for row in table if row.startswith(("windowed", "lru"))]
    assert [row[0] for row in rows] == ["windowed", "windowed", "lru", "lru"]
    for row, point in zip(rows, line["curve"], strict=True):
        assert row[3] == f"{point['hit_rate']:.4f}"  # after the size's number and unit
    assert line["advice"]["said"] == table.pop()
    assert max(map(len, table)) <= 100


def test_at_its_widest_the_table_fits_a_hundred_columns(hitrate: Callable[..., Any]) -> None:
    traffic = f"{TRAFFIC},tokens=1000000"
    shown = hitrate(traffic, "--disk", "100%", "--bytes-per-token", "999999").stdout
    *table, _, _ = shown.splitlines()
    assert max(map(len, table)) <= 100 and any("TB" in row for row in table)


def test_without_a_trace_the_services_own_requests_leave_the_pages_curve(
    hitrate: Callable[..., Any], tmp_path: Path
) -> None:
    log = LookupLog(tmp_path / "home", 1 << 20, RecordFacts(100, 100, 32, 2))
    for number in range(30):
        log.note([LoggedPart(str(number % 7), 40, True)])
    line = json.loads(hitrate("--memory", "3 kB", "--disk", "100%").stdout.splitlines()[-1])
    assert line["bytes_per_token"] == 100
    assert line["facts"]["footprint_bytes"] == 7 * 64 * 100
    sizing = read_sizing(tmp_path / "home")
    assert sizing is not None and sizing.trace == "30 requests of this service"
    # of memory alone, over all sizes, whatever was asked for on the command line
    assert sizing.points[-1].capacity_bytes == 7 * 64 * 100
    assert sizing.points[-1].hit_rate == pytest.approx(23 / 30, abs=1e-4)
    rates = [point.hit_rate for point in sizing.points]
    assert len(rates) > 5 and rates == sorted(rates)


def test_another_trace_leaves_the_pages_curve_alone(
    hitrate: Callable[..., Any], tmp_path: Path
) -> None:
    hitrate(TRAFFIC, "--memory", "10%")
    assert not (tmp_path / "home").exists()


def test_a_picture_and_exports_are_written(hitrate: Callable[..., Any], tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    hitrate(TRAFFIC, "--memory", "10%", "--picture", str(picture))
    assert picture.read_text().startswith("<svg ")
    for form, count in {"chunks": 40, "oracle": 120, "lmcache": 40}.items():
        out = tmp_path / f"out-{form}.oracleGeneral"
        said = hitrate(TRAFFIC, "--export", str(out), "--export-form", form).stdout
        assert said.startswith(f"{count} ")
    assert (tmp_path / "out-oracle.oracleGeneral").stat().st_size == 120 * 24
    again = hitrate(str(out.with_name("out-chunks.oracleGeneral")), "--form", "chunks",
                    "--memory", "10%").stdout  # fmt: skip
    direct = hitrate(TRAFFIC, "--memory", "10%").stdout
    curves = [json.loads(shown.splitlines()[-1])["curve"] for shown in (again, direct)]
    for curve in curves:
        for point in curve:
            del point["accesses_per_s"]
    assert curves[0] == curves[1]
    alone = hitrate(TRAFFIC, "--by-access", "--export", str(tmp_path / "alone")).stdout
    assert alone.startswith("120 requests")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Hint: name a trace, or let the service run with store.lookup_log_bytes above 0"),
        (("none.jsonl",), "trace: got 'none.jsonl', must be a file or folder"),
        (("zipf:alpha=9",), "trace: alpha: got 9.0, must be from 0.0 to 5.0"),
        ((TRAFFIC, "--policy", "fastest"), "policy: got 'fastest', must be one of windowed, lru"),
        ((TRAFFIC, "--memory", "lots"), "--memory: got 'lots', must be an amount such as 10%"),
        ((TRAFFIC, "--disk", "5 miles"), "--disk: got '5 miles'"),
    ],
)
def test_what_is_wrong_is_said(
    hitrate: Callable[..., Any], arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        hitrate(*arguments)
    assert said in error.value.message


def test_a_fault_on_the_way_leaves_no_picture_and_names_its_line(
    hitrate: Callable[..., Any], tmp_path: Path
) -> None:
    trace, picture = tmp_path / "t.jsonl", tmp_path / "curve.svg"
    trace.write_text('{"at": 1, "chunks": [{"id": "a", "tokens": 5}]}\n{"at": 2}\n')
    with pytest.raises(InvalidRequest, match=r"t\.jsonl line 2: chunks: got None"):
        hitrate(str(trace), "--picture", str(picture))
    assert not picture.exists()


def test_no_file_is_lost_to_a_picture_or_an_export(
    hitrate: Callable[..., Any], tmp_path: Path
) -> None:
    mine, curve = tmp_path / "questions.jsonl", tmp_path / "curve.svg"
    mine.write_text("mine")
    with pytest.raises(InvalidRequest, match=r"--export: .* must be a new file"):
        hitrate(TRAFFIC, "--export", str(mine))
    with pytest.raises(InvalidRequest, match=r"--picture: .* another such picture"):
        hitrate(TRAFFIC, "--memory", "10%", "--picture", str(mine))
    assert mine.read_text() == "mine"
    curve.write_text("<svg an earlier curve")
    hitrate(TRAFFIC, "--memory", "10%", "--picture", str(curve))
    assert "an earlier curve" not in curve.read_text()
    hitrate(TRAFFIC, "--export", str(mine), "--overwrite")
    assert mine.read_text().startswith('{"at"')
