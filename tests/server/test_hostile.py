"""Hundreds of hostile requests: no server error, others are served, memory and series come back."""

from __future__ import annotations

import gc
import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

COUNT = 200
MEMORY_MIB = 48


@pytest.fixture(scope="module")
def hostile() -> Any:
    path = Path(__file__).with_name("hostile.py")
    spec = importlib.util.spec_from_file_location("hostile", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module  # where its dataclass looks for its own module
    spec.loader.exec_module(module)
    return module


def test_no_server_error_and_no_answer_that_is_no_error_object(served: Any, hostile: Any) -> None:
    looks: list[int] = []
    done = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=served.url, timeout=10) as client:
            while not done.is_set():
                looks.append(client.get("/health").status_code)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        statuses = hostile.ask_all(served.url, COUNT, seed=1)
    finally:
        done.set()
        looker.join(20)
    assert sum(statuses.values()) == COUNT
    assert statuses[400] > COUNT / 4 and statuses[200] > 0
    assert set(looks) == {200}


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def series_of(url: str) -> set[str]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_memory_and_metrics_are_back_where_they_were(served: Any, hostile: Any) -> None:
    hostile.ask_all(served.url, COUNT, seed=2)  # what is loaded and kept on first use
    gc.collect()
    before_mib, series = resident_mib(), series_of(served.url)
    hostile.ask_all(served.url, COUNT, seed=3)
    gc.collect()
    assert resident_mib() < before_mib + MEMORY_MIB
    assert series_of(served.url) == series
    assert served.service._running == []
    assert served.app.state.lane.waiting == 0
