"""How a command ends that is interrupted, or whose output nobody reads any more."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import IO, Any

import pytest

from chunkcache.cli.upkeep import _written
from chunkcache.errors import StoreError
from chunkcache.jobs.warmup import warm_in_processes

LONG = "zipf:chunks=50000,requests=400000"


@contextmanager
def closed_pipe() -> Iterator[IO[str]]:
    """To be written to; its reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", closefd=False) as stream:
        yield stream
    os.close(writer)


def command(options: list[str], *arguments: str) -> list[str]:
    return [sys.executable, "-m", "chunkcache", *options, *arguments]


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["ls", "--json"], ["stats"], ["check"], ["--help"], ["--version"],
     ["hitrate", "zipf:chunks=10,requests=10"]],
)  # fmt: skip
def test_what_nobody_reads_on_is_no_fault(
    arguments: list[str], warm_home: Path, options: list[str], tmp_path: Path
) -> None:
    shutil.copytree(warm_home, tmp_path / "home")
    with closed_pipe() as stream:
        done = subprocess.run(
            command(["--quiet", *options], *arguments),
            stdout=stream, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_that_nobody_reads_stops_no_work(
    warm_home: Path, options: list[str], tmp_path: Path
) -> None:
    shutil.copytree(warm_home, tmp_path / "home")
    with closed_pipe() as stream:
        done = subprocess.run(
            command(options, "check"), stdout=subprocess.PIPE, stderr=stream, text=True, check=False
        )
    assert done.returncode == 0 and "2 ok, 0 corrupt" in done.stdout


def test_half_an_archive_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_pipe() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        refused = pytest.raises(StoreError, match="closed before all of it was written")
        with refused, _written(Path("-")) as archive:
            archive.write(b"x" * 100_000)


def hears_ctrl_c() -> None:
    """In a child: what a shell runs in the background ignores it, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_little_is_loaded_before_an_interrupt_is_heard() -> None:
    """Until `main` runs, Ctrl-C ends in a traceback of whatever is being imported."""
    script = (
        "import sys; known = {*sys.modules}; import chunkcache.cli; print(*{*sys.modules} - known)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    ours = {"chunkcache", "chunkcache.cli", "chunkcache.errors", "chunkcache.waiting"}
    assert {name for name in loaded if name.startswith("chunkcache")} == ours
    assert not {"email", "importlib.metadata", "socket", "typer"} & loaded


def test_an_interrupted_command_says_so(options: list[str]) -> None:
    with subprocess.Popen(
        command(options, "hitrate", LONG), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=hears_ctrl_c,
    ) as process:  # fmt: skip
        assert process.stderr is not None and "reading: 400000" in process.stderr.readline()
        assert "reading: " in process.stderr.readline()  # it is at work
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    *_, before, last = err.splitlines()
    assert before.startswith("reading: ") and "of 400000 requests, in" in before
    assert last == "interrupted; what was stored stays, run it again to go on"
    assert "Traceback" not in err


@pytest.mark.parametrize("options", [[], ["--log-json"]])
def test_an_interrupt_that_python_ignores_comes_again(options: list[str]) -> None:
    """As one does that falls into the callback that imports have for each module."""
    script = """
import signal, sys, threading
import chunkcache.cli as cli
import chunkcache.cli.app as app

class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def command():
    del sys.modules["chunkcache.cli.app"].deaf
    threading.Event().wait(60)  # of a test that fails

app.deaf = Deaf()
app.app = command
sys.argv = ["chunkcache", *sys.argv[1:]]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, check=False,
        preexec_fn=hears_ctrl_c,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "interrupted; what was stored stays" in done.stderr and "ignored" not in done.stderr


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_ends_the_workers_of_a_warm_up_without_a_word_of_theirs(
    warm_home: Path, options: list[str], tmp_path: Path
) -> None:
    shutil.copytree(warm_home, tmp_path / "home")
    with subprocess.Popen(
        command(options, "warm", "--workers", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, preexec_fn=hears_ctrl_c,
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stderr.readline() == "warm: begins\n"
        deadline = time.monotonic() + 300  # of a test that hangs
        while len(workers := children_of(process.pid)) < 3:  # and one that counts semaphores
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("interrupted; ") and len(err.splitlines()) == 2, err
    while any(map(is_running, workers)):  # the counter of semaphores ends after its parent
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupt_while_workers_begin_leaves_none_of_them(
    tiny_settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = SpawnProcess.start

    def begin_and_interrupt(process: SpawnProcess) -> None:
        begin(process)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SpawnProcess, "start", begin_and_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            warm_in_processes(tiny_settings(), 2, tenant="public", collection="default")
    finally:
        signal.signal(signal.SIGINT, before)
    assert multiprocessing.active_children() == []
