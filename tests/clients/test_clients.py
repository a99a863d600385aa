"""Real clients in environments of their own, where a server to try them on is named.

CHUNKCACHE_CLIENTS_URL=http://127.0.0.1:8321 CHUNKCACHE_CLIENTS_FOLDER=… pytest -m clients
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
URL = os.environ.get("CHUNKCACHE_CLIENTS_URL", "")
FOLDER = Path(os.environ.get("CHUNKCACHE_CLIENTS_FOLDER", ".clients"))


@pytest.fixture
def try_clients(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which finds its roster beside itself."""
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("roster", "try_clients"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import try_clients

    return try_clients


def test_every_client_is_pinned_and_has_a_script(try_clients: Any) -> None:
    names = [client.name for client in try_clients.CLIENTS]
    assert len(set(names)) == len(names) >= 16
    for client in try_clients.CLIENTS:
        pin = r"[\w.@/\[\]-]+(==|@)\d[\w.]*" if client.kind == "pip" else r"@?[\w/-]+@\d[\w.]*"
        assert all(re.fullmatch(pin, package) for package in client.packages), client
        assert re.fullmatch(r"\d[\w.]*", client.version)
        assert (HERE / "cases" / client.script).exists(), client.name


def test_the_page_keeps_what_is_known_of_clients_not_tried(
    try_clients: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "clients.md"
    monkeypatch.setattr(try_clients, "PAGE", page)
    first, second = (client.name for client in try_clients.CLIENTS[:2])
    try_clients.write_page(second, [f"| {second} | 1 | chat | works |"])
    try_clients.write_page(first, [f"| {first} | 1 | chat | fails: ¦ |"])
    try_clients.write_page(second, [f"| {second} | 2 | chat | fails |"])
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {first} | 1 | chat | fails: ¦ |", f"| {second} | 2 | chat | fails |"]


def test_the_page_keeps_what_another_model_did(
    try_clients: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "clients.md"
    monkeypatch.setattr(try_clients, "PAGE", page)
    name = try_clients.CLIENTS[0].name
    try_clients.write_page(name, [f"| {name} | 1 | chat [other-0.5b] | old |"], "other-0.5b")
    try_clients.write_page(name, [f"| {name} | 1 | chat | fails |"])
    try_clients.write_page(name, [f"| {name} | 1 | chat [other-0.5b] | works |"], "other-0.5b")
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {name} | 1 | chat | fails |", f"| {name} | 1 | chat [other-0.5b] | works |"]


@pytest.mark.clients
@pytest.mark.skipif(not URL, reason="CHUNKCACHE_CLIENTS_URL names no server")
@pytest.mark.parametrize("index", range(18))
def test_a_client_gets_what_it_asks_for(try_clients: Any, index: int) -> None:
    found = try_clients.tried(try_clients.CLIENTS[index], FOLDER, URL)
    assert found and [pair for pair in found if pair[1] != "works"] == []
