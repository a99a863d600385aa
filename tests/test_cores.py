"""One team of cores: what runs beside the engine starts no second one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chunkcache.cores import count_cores, in_own_thread, one_core
from chunkcache.jobs.warmup import threads_each

counts_threads = pytest.mark.skipif(
    count_cores() < 2 or not Path("/proc/self/task").exists(),
    reason="one core, or no /proc to count threads in",
)
# Threads are counted in a process of its own: here, those of other tests come and go.
COUNT = """
import os, threading, time, torch
from chunkcache.cores import in_own_thread, one_core, release_team

def threads_left_by(function):
    ran, done, before = threading.Event(), threading.Event(), len(os.listdir("/proc/self/task"))
    def run():
        function()
        time.sleep(0.2)
        ran.set()
        done.wait(60)
    thread = threading.Thread(target=run)
    thread.start()
    assert ran.wait(60)
    more = len(os.listdir("/proc/self/task")) - before - 1
    done.set()
    thread.join()
    return more

def add():
    torch.ones(1 << 22).add_(1.0)

def drift():
    from chunkcache.evaluate.drift import drift_between
    with one_core():
        logits = torch.randn(8, 50_000)
        other = logits + 0.1
    drift_between(logits, other)
"""


def left_by(code: str) -> int:
    """Threads that stay once a fresh thread has run the code, which is a function's name."""
    done = subprocess.run(
        [sys.executable, "-c", f"{COUNT}\nprint(threads_left_by({code}))"],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    return int(done.stdout.split()[-1])


@counts_threads
def test_without_care_a_team_stays() -> None:
    """Or the tests below would show nothing."""
    assert left_by("add") == 1


@counts_threads
@pytest.mark.parametrize(
    "code", ["one_core()(add)", "lambda: in_own_thread(add)", "lambda: (add(), release_team())"]
)
def test_no_team_stays(code: str) -> None:
    assert left_by(code) == 0


@counts_threads
def test_measuring_drift_starts_no_team() -> None:
    assert left_by("drift") == 0


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_the_number_is_one_inside_and_what_it_was_outside() -> None:
    seen: list[int] = []
    with one_core():
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert in_own_thread(torch.get_num_threads) == 3
    assert seen == [3] and torch.get_num_threads() == 3


def test_results_and_errors_come_back() -> None:
    assert in_own_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        in_own_thread(divmod, 7, 0)


def test_workers_share_the_cores_that_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may use fewer than the machine has."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert [threads_each(workers) for workers in (1, 2, 5, 9)] == [5, 2, 1, 1]
