"""A `ChunkCache` over the tiny model, and questions with passages of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache


@pytest.fixture
def cache(tiny_settings: Callable[..., Any]) -> Iterator[ChunkCache]:
    with ChunkCache(tiny_settings()) as opened:
        yield opened


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    """Ten questions of three passages each; the second one is the supporting one."""
    path = tmp_path / "questions.jsonl"
    lines = []
    for number in range(10):
        contexts = [
            {"title": f"T{i}", "text": f"Number {number}, passage {i}: the quick brown fox " * 3,
             "supporting": i == 1}
            for i in range(3)
        ]  # fmt: skip
        lines.append(
            json.dumps({"id": f"q{number}", "question": f"which fox is number {number}?",
                        "answers": ["the fox"], "contexts": contexts, "level": "easy"})
        )  # fmt: skip
    path.write_text("\n".join(lines) + "\n\n")
    return path
