"""The commands, in process on the tiny model; and the real executable for exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chunkcache import ChunkCache
from chunkcache.cli import main
from chunkcache.cli.app import app
from chunkcache.cli.context import assign
from chunkcache.cli.screen import RIBBON_CELLS, ribbon
from chunkcache.errors import ConfigError, InvalidRequest, NotFound
from chunkcache.protocol import Report, SpanReport, Timings
from chunkcache.service.tenants import load_secret


def test_the_way_of_a_document(run: Callable[..., Any], pages: Path) -> None:
    first = run("ingest", str(pages)).stdout
    assert "added 2" in first and "skipped 1" in first and "blob.txt" in first
    assert "unchanged 2" in run("ingest", str(pages)).stdout
    listed = [json.loads(line) for line in run("ls", "--json").stdout.splitlines()]
    assert {d["title"] for d in listed} == {"Owls", "cats.txt"}
    assert "2 documents" in run("ls").stdout
    hits = [json.loads(x) for x in run("search", "owls hunt", "--json").stdout.splitlines()]
    assert hits[0]["title"] == "Owls"
    assert "Owls" in run("search", "owls hunt").stdout
    warmed = run("warm").stdout
    assert "0 were warm" in warmed and "0 failed" in warmed
    assert "0 computed" in run("warm").stdout
    assert "0 corrupt" in run("check").stdout
    run("rm", next(d["document_id"] for d in listed if d["title"] == "Owls"))
    with pytest.raises(NotFound, match=r"doc-nowhere.* as of 1 of 1 named"):
        run("rm", "doc-nowhere")
    assert "1 documents" in run("ls").stdout
    moved = pages.rename(pages.parent / "moved")
    assert "renamed 1" in run("ingest", str(moved / "cats.txt")).stdout
    assert str(moved / "cats.txt") in run("ls").stdout
    assert json.loads(run("ls", "--json").stdout)["path"] == str(moved / "cats.txt")


def test_what_was_removed_is_said_though_one_was_not_there(run: partial[Any], pages: Path) -> None:
    with pytest.raises(NotFound):  # before there is anything
        run("rm", "doc-nowhere")
    assert "no passage was found in default" in run("ask", "owls?", "--max-tokens", "1").stdout
    run("ingest", str(pages))
    held = [json.loads(line)["document_id"] for line in run("ls", "--json").stdout.splitlines()]
    named = ["rm", held[0], "doc-nowhere", held[0], held[1]]
    result = CliRunner().invoke(app, [*run.args[0], *named])
    assert isinstance(result.exception, NotFound) and "1 of 3 named" in str(result.exception)
    assert "removed 2" in result.stdout
    assert "0 documents" in run("ls").stdout


def test_only_a_server_recompresses(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[int] = []
    close = ChunkCache.close

    def look_and_close(cache: ChunkCache) -> None:
        jobs.append(len(cache.runtime.store.jobs))
        close(cache)

    def serve_nobody(service: ChunkCache, *_: Any, **__: Any) -> int:
        service.close()
        return 0

    monkeypatch.setattr(ChunkCache, "close", look_and_close)
    monkeypatch.setattr("chunkcache.server.run.serve", serve_nobody)
    cold = ("--set", "store.cold_codec=int4")
    run(*cold, "serve", "--port", "0")
    run(*cold, "ask", "who hunts?", "--max-tokens", "1")
    assert jobs == [1, 0]


def test_ask_streams_cites_and_reports(run: Callable[..., Any], pages: Path) -> None:
    run("ingest", str(pages))
    cold = run("ask", "when do owls hunt?", "--max-tokens", "4", "--budget", "0.5").stdout
    assert "of a full prefill, beside the passages that were in no tier" in cold
    shown = run("ask", "when do owls hunt?", "--max-tokens", "4", "--budget", "0.5").stdout
    assert "[1] Owls" in shown and "TTFT" in shown and "prompt tokens" in shown
    assert "cut at its limit of 4 tokens; see --max-tokens" in shown
    assert "beside the passages" not in shown
    as_json = json.loads(run("ask", "owls?", "--max-tokens", "4", "--json").stdout)
    assert as_json["report"]["prompt_tokens"] > 0 and as_json["citations"]
    exact = json.loads(run("ask", "owls?", "--mode", "exact", "--json").stdout)
    assert exact["report"]["policy"] == "exact"


HOSTILE = (
    "[/etc]", "[bold", "[red]x[/blue]", "[link=https://x.test]y", ":smile:", "\\[/]", "{0} %s",
    "\x1b[2J\x07bell", "日本 \U0001f600", "[/]" * 40,
)  # fmt: skip


def test_every_command_prints_any_title_name_and_text(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "[" / "etc] [bold]"  # `[/etc] [bold]` in its path
    folder.mkdir(parents=True)
    for number, title in enumerate(HOSTILE):
        text = f"Fact {number} of {title}: owls hunt."
        line = json.dumps({"text": text, "title": title})
        (folder / f"[red]{number} :smile:.jsonl").write_text(line)
        (folder / f"{number}.md").write_text(f"# {title}\n\n{text}\n")
    (folder / "[bad.txt").write_bytes(b"\0")
    assert "[/etc] [bold]/[bad.txt: a binary" in run("ingest", str(folder)).stdout
    listed = run("ls").stdout
    shown = run("search", "owls hunt", "--top-k", "64").stdout
    asked = run("ask", "[/etc] :smile: owls?", "--top-k", "64", "--max-tokens", "2").stdout
    for title in ("[/etc]", "[bold", "[red]x[/blue]", ":smile:", "{0} %s", "日本 \U0001f600"):
        assert title in listed and title in shown and title in asked
    assert "[/etc] [bold]/[red]0 :smile:.jsonl" in listed
    for text in (listed, shown, asked):
        assert "\x1b" not in text and "\x07" not in text
    assert r"\x1b[2J" in shown
    run("warm")
    run("check")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_titles_beyond_a_terminal_s_letters_are_spelled_out(
    encoding: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    (tmp_path / "a.md").write_text("# 日本 größer\n\ntext", encoding="utf-8")
    run("ingest", str(tmp_path / "a.md"))
    command = [sys.executable, "-m", "chunkcache", "--home", str(tmp_path / "home"), "ls"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding)
    assert ("日本" if encoding == "utf-8" else r"\u65e5\u672c") in shown
    assert (r"gr\xf6\xdfer" if encoding == "ascii" else "größer") in shown


def test_bad_settings_are_named(run: Callable[..., Any]) -> None:
    for text, named in {
        "retrieval.top_k=65": "retrieval.top_k",
        "retrieval.nonsense=1": "retrieval.nonsense",
        "model.dtype=int3": "model.dtype",
        "novalue": "NAME=VALUE",
    }.items():
        with pytest.raises(ConfigError, match=named):
            run("--set", text, "ls")


def test_assignments_nest_and_keep_their_types() -> None:
    into: dict[str, Any] = {}
    for text in ("a.b=3", "a.c=true", "a.d=word", 'e="3"', "f=[1, 2]"):
        assign(into, text)
    assert into == {"a": {"b": 3, "c": True, "d": "word"}, "e": "3", "f": [1, 2]}
    with pytest.raises(ConfigError):
        assign(into, "e.x=1")


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setattr(sys, "argv", ["chunkcache"])
    with pytest.raises(ConfigError, match=r"home: cannot read or make .*home/secret"):
        load_secret(tmp_path / "home")

    def fail() -> None:
        (tmp_path / "home" / "x\x1b").write_text("y")

    monkeypatch.setattr("chunkcache.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == (
        f"error: {tmp_path}/home/x\\x1b: Not a directory. Hint: check free space and permissions\n"
    )


HEAVY = (
    "torch", "transformers", "tokenizers", "faiss", "bm25s", "scipy", "fastapi", "uvicorn",
    "trafilatura", "pypdfium2", "numba", "huggingface_hub", "matplotlib", "httpx",
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["ls", "--json"], ["--help"], ["ask", "--help"], ["--version"], ["check"],
     ["check", "--fix"], ["rm", "DOCUMENT"]],
)  # fmt: skip
def test_what_needs_no_model_loads_none(
    arguments: list[str], run: Callable[..., Any], warm_home: Path, tmp_path: Path
) -> None:
    shutil.copytree(warm_home, tmp_path / "home")
    held = json.loads(run("ls", "--json").stdout.splitlines()[0])
    arguments = [held["document_id"] if word == "DOCUMENT" else word for word in arguments]
    script = (
        "import sys; from chunkcache.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, "--home", str(tmp_path / "home"),
               "--model", "/there/is/no/model", "--set", "retrieval.embedder=/nor/embedder",
               *arguments]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"
    if arguments == ["check"]:
        assert "2 records of 1 models" in done.stdout


def test_unknown_modes_are_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequest, match="mode"):
        run("ask", "x", "--mode", "magic")


def span(**fields: Any) -> SpanReport:
    kept = {"reused": 0, "recomputed": 0, "computed": 0, "tier": None, "miss": None}
    return SpanReport.model_validate({**kept, **fields})


def test_the_ribbon_is_to_scale_and_shows_recomputed_rows_where_they_are() -> None:
    spans = [
        span(kind="head", start=0, tokens=1, rung="exact"),
        span(kind="chunk", start=1, tokens=100, rung="exact"),
        span(kind="chunk", start=101, tokens=100, rung="repaired",
             recomputed_positions=list(range(101, 151))),
        span(kind="question", start=201, tokens=9, rung="full"),
    ]  # fmt: skip
    report = Report(
        rung="repaired", policy="question", budget=0.5, prompt_tokens=210, reused_tokens=0,
        recomputed_tokens=0, computed_tokens=210, cost_ratio=1.0, spans=spans, timings=Timings(),
    )  # fmt: skip
    line = ribbon(report).plain
    assert abs(len(line) - RIBBON_CELLS) <= len(spans)
    assert line[0] == "░" and line[-1] == "?"
    third = line[30:59]
    assert third.index("▒") < third.index("▓") and "▒" not in third[third.index("▓") :]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--version"], 0, "0."),
        (["--set", "x", "ls"], 2, "NAME=VALUE"),
        (["ls", "--nonsense"], 2, "nonsense"),
        (["--model", "/does/not/exist", "doctor"], 1, "does not exist"),
        (["ingest", "/does/not/exist"], 2, "does not exist"),
        (["rm", "[/etc] \x1b[2J"], 2, "[/etc] \\x1b[2J"),
        (["ls", "[/etc]"], 2, "[/etc]"),
        (["hitrate", "n" * 300], 2, "File name too long"),
    ],
)
def test_exit_codes_and_messages_of_the_real_command(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    home = {"CHUNKCACHE_HOME": str(tmp_path), "CHUNKCACHE_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "chunkcache", *arguments],
        capture_output=True, text=True, env={**os.environ, **home}, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    shown = done.stdout + done.stderr
    assert said in shown and "Traceback" not in shown
