"""kill -9 of `chunkcache warm --workers`: its workers end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any


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
    with (settings.home / "secret").open("wb"):  # opens once a worker reads
        process.kill()
        # what each of them has inherited ends with the last of them
        assert process.communicate(timeout=60) == (b"", None)
