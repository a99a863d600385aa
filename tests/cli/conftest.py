"""The commands, run in process on the tiny model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from chunkcache.cli.app import app


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The commands point log lines at stderr, which is another one for every test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def options(tiny_model_folder: Path, tiny_verdicts: Path, tmp_path: Path) -> list[str]:
    """The shared options of a cache of its own."""
    settings = {
        "cache": tiny_verdicts,
        "model.alias": "tiny",
        "model.dtype": "float32",
        "retrieval.embedder": "hashing:64",
        "retrieval.chunk_tokens": 64,
        "engine.kv_capacity_bytes": 1 << 23,
        "store.disk_capacity_bytes": 1 << 26,
    }
    assigned = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["--home", str(tmp_path / "home"), "--model", str(tiny_model_folder), *assigned]


@pytest.fixture
def run(options: list[str]) -> Callable[..., Any]:
    def invoke(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*options, *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke
