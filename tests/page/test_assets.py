"""The page's files: vendored code is what was published, our own is short and makes no HTML."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from chunkcache.server.assets import FOLDER, load_assets

OWN = sorted(path for path in FOLDER.iterdir() if path.is_file())
VENDOR = FOLDER / "vendor"
SCRIPTS = [path for path in OWN if path.suffix == ".js"]


def test_vendored_files_are_those_whose_checksums_are_listed() -> None:
    lines = (VENDOR / "checksums.txt").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines if not line.startswith("#"))
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.name != "checksums.txt"
    }
    assert found == listed
    assert set(found) == {"uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE.txt"}
    assert "MIT License" in (VENDOR / "uPlot.LICENSE.txt").read_text()
    assert "1.6.32" in (VENDOR / "uPlot.iife.min.js").read_text()[:200]


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.name)
def test_a_file_fits_on_a_few_screens(path: Any) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_no_script_turns_text_into_markup_or_code(path: Any) -> None:
    made = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"
    assert re.findall(made, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_a_script_reads_only_what_is_here(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r'^(?:import|\} from) .*?"(.*?)";$', text, re.MULTILINE):
        assert (FOLDER / name).is_file(), name
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_document_has_nothing_inline_and_no_id_twice() -> None:
    parser = Elements()
    parser.feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in parser.found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 30
    for tag, attributes in parser.found:
        assert tag != "style" and "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "script":
            assert attributes.get("src")


def test_ids_that_scripts_ask_for_are_in_the_document() -> None:
    document = (FOLDER / "index.html").read_text(encoding="utf-8")
    for path in SCRIPTS:
        for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text(encoding="utf-8")):
            assert f'id="{name}"' in document, f"{path.name}: {name}"


def test_every_file_is_served_with_the_policy_and_its_kind(served: Any) -> None:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css",
             ".svg": "image/svg+xml", ".txt": "text/plain"}  # fmt: skip
    with httpx.Client(base_url=served.url) as http:
        for name, asset in load_assets().items():
            path = "/" if name == "index.html" else f"/page/{name}"
            response = http.get(path)
            assert (response.status_code, response.content) == (200, asset.data), path
            kind = kinds["." + name.rpartition(".")[2]]
            assert response.headers["content-type"].startswith(kind)
            policy = response.headers["content-security-policy"]
            assert "unsafe" not in policy and "default-src 'none'" in policy
            assert response.headers["x-content-type-options"] == "nosniff"
            again = http.get(path, headers={"if-none-match": response.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["none.js", "index.html", "../assets.py", "..%2fassets.py", "vendor/", "%00", ""]
)
def test_nothing_else_is_served(served: Any, name: str) -> None:
    response = httpx.get(f"{served.url}/page/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
