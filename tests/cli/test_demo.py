"""How the demo ends."""

from __future__ import annotations

import io

from rich.console import Console

from chunkcache.cli.demo import _name_the_page
from chunkcache.config import Settings


def test_it_names_the_page_of_this_very_cache() -> None:
    written = io.StringIO()
    settings = Settings(home="/a b/home", server={"port": 8400})
    _name_the_page(Console(file=written, width=40), settings)
    assert "chunkcache --home '/a b/home' serve" in written.getvalue()
    assert "http://127.0.0.1:8400/\n" in written.getvalue()
