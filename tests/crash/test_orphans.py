"""kill -9 of `chunkcache warm --workers`: its workers end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def reader_awaited(fifo: Path, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A pipe's end to write to, from when another process reads it; fails if `process` ends."""
    while True:
        try:
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"ended before a worker began: {process.wait(0.05)}")
    try:
        yield
    finally:
        os.close(writer)


def test_a_killed_warm_up_leaves_no_workers_behind(tiny_settings: Callable[..., Any]) -> None:
    settings = tiny_settings()
    settings.home.mkdir()
    os.mkfifo(settings.home / "secret")  # whoever reads it waits: workers that go on for hours
    command = [
        sys.executable, "-m", "chunkcache", "--home", str(settings.home),
        "--model", settings.model.name, "--set", "retrieval.embedder=hashing:64",
        "warm", "--workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    with reader_awaited(settings.home / "secret", process):
        process.kill()
        # what each of them has inherited ends with the last of them
        assert process.communicate(timeout=60) == (b"", None)
