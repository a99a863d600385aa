"""How the demo ends."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chunkcache.cli.demo import _name_the_page
from chunkcache.config import Settings
from chunkcache.errors import InvalidRequest


def test_it_names_the_page_of_this_very_cache() -> None:
    written = io.StringIO()
    settings = Settings(home="/a b/home", server={"port": 8400})
    _name_the_page(Console(file=written, width=40), settings)
    assert "chunkcache --home '/a b/home' serve" in written.getvalue()
    assert "http://127.0.0.1:8400/\n" in written.getvalue()


def test_a_demo_of_nothing_says_so_first(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=r"docs: .* none could be read"):
        run("demo", str(tmp_path / "empty"))
    asked = tmp_path / "asked.txt"
    for content, said in ((b"\n \n", "it is empty"), (b"\xff\xfe?", "cannot read")):
        asked.write_bytes(content)
        with pytest.raises(InvalidRequest, match=said):
            run("--model", "/there/is/none", "demo", "--questions", str(asked))
