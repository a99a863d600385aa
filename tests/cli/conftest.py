"""The commands, run in process on the tiny model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from chunkcache.cli.app import app


@contextmanager
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The commands point log lines at stderr, which is another one for every test."""
    with logging_restored():
        yield


def invoke(options: list[str], *arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*options, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="session")
def of_tiny_model(tiny_model_folder: Path, tiny_verdicts: Path) -> list[str]:
    """The shared options, but for the home."""
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
    return ["--model", str(tiny_model_folder), *assigned]


@pytest.fixture
def options(of_tiny_model: list[str], tmp_path: Path) -> list[str]:
    """The shared options of a cache of its own."""
    return ["--home", str(tmp_path / "home"), *of_tiny_model]


@pytest.fixture
def run(options: list[str]) -> Callable[..., Any]:
    return partial(invoke, options)


@pytest.fixture(scope="session")
def warm_home(tmp_path_factory: pytest.TempPathFactory, of_tiny_model: list[str]) -> Path:
    """A home with two documents and their records, to be copied or read."""
    folder = tmp_path_factory.mktemp("warm")
    for name in ("owls", "cats"):
        (folder / f"{name}.md").write_text(f"# {name.title()}\n\nWhat {name} do at night.\n")
    home = folder / "home"
    with logging_restored():
        for arguments in (["ingest", *map(str, folder.glob("*.md"))], ["warm"]):
            invoke(["--home", str(home), *of_tiny_model], *arguments)
    return home


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "owls.md").write_text("# Owls\n\nOwls hunt at night. They turn the head.\n")
    (folder / "cats.txt").write_text("Cats sleep a lot.\n\nThey purr when content.\n")
    (folder / "blob.txt").write_bytes(b"\x00\x01binary")
    return folder
