"""A `ChunkCache` over the tiny model, and documents for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache


@pytest.fixture
def open_cache(tiny_settings: Callable[..., Any]) -> Iterator[Callable[..., ChunkCache]]:
    opened: list[ChunkCache] = []

    def make(*, recompresses: bool = False, **sections: Any) -> ChunkCache:
        opened.append(ChunkCache(tiny_settings(**sections), recompresses=recompresses))
        return opened[-1]

    yield make
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache: Callable[..., ChunkCache]) -> ChunkCache:
    return open_cache()


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Three documents about animals."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for name, line in {
        "cats": "Cats sleep sixteen hours a day and purr when they are content.",
        "dogs": "Dogs were the first animal that people kept; they follow a scent.",
        "owls": "Owls hunt at night, turning the head to find where a sound is from.",
    }.items():
        paragraphs = [f"{line} ({number})" for number in range(4)]
        (folder / f"{name}.md").write_text(f"# {name.title()}\n\n" + "\n\n".join(paragraphs))
    return folder
