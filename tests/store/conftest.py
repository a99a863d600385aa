"""Real LMDB tiers in temporary folders, records made from numbers, and a second process."""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.metrics import Metrics
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

HERE = Path(__file__).parent
MIB = 1024 * 1024


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def records() -> ModuleType:
    """The module records.py."""
    return _load("records")


@pytest.fixture(scope="session")
def naive() -> ModuleType:
    """The module naive_codecs.py."""
    return _load("naive_codecs")


class OtherProcess:
    """A process that obeys one command at a time (other_process.py)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "other_process.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout

    def ask(self, do: str, *, meanwhile: Callable[[], None] | None = None, **order: Any) -> Any:
        """Its answer; `meanwhile` is called again and again until it comes."""
        self._orders.write(json.dumps({"do": do, **order}, default=str) + "\n")
        self._orders.flush()
        if meanwhile is not None:
            while not select.select([self._answers], [], [], 0.001)[0]:
                meanwhile()
        answer = self._answers.readline()
        assert answer, "the other process has died"
        return json.loads(answer)

    def end(self) -> None:
        self._orders.close()
        self._answers.close()
        self._process.wait(30)


@pytest.fixture(scope="session")
def other_process() -> Iterator[OtherProcess]:
    process = OtherProcess()
    yield process
    process.end()


@pytest.fixture
def open_tier(tmp_path: Path, records: ModuleType) -> Iterator[Callable[..., DiskTier]]:
    """Opens a `DiskTier` on the test's folder; keywords as the tier's. Closed with the test."""
    opened: list[DiskTier] = []

    def opener(capacity_bytes: int = 64 * MIB, **options: Any) -> DiskTier:
        options = {"fingerprint": records.FINGERPRINT, **options}
        codec = options.pop("codec", codec_named("raw"))
        path = options.pop("path", tmp_path / "kv")
        opened.append(DiskTier(path, capacity_bytes, codec, **options))
        return opened[-1]

    yield opener
    for tier in opened:
        tier.close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def counted(metrics: Metrics) -> Callable[..., float]:
    """Value of a metric's sample, 0 when never touched: `counted("chunk_hits_total", tier=…)`."""

    def value(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(f"chunkcache_{name}", labels) or 0.0

    return value


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds that another thread or process brings about."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            time.sleep(0.001)

    return wait
