"""The integrations in environments of their own, where a server to try them on is named.

CHUNKCACHE_CLIENTS_URL=http://127.0.0.1:8321 CHUNKCACHE_CLIENTS_FOLDER=… pytest -m clients

What needs no framework is tested here at once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import TypeAdapter

import chunkcache.errors
from chunkcache.errors import UnsupportedField
from chunkcache.filters import AttributeFilter

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
URL = os.environ.get("CHUNKCACHE_CLIENTS_URL", "")
FOLDER = Path(os.environ.get("CHUNKCACHE_CLIENTS_FOLDER", ".clients"))
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a.TestUnit" name="a" />
<testcase classname="tests.test_a.TestUnit" name="b"><failure message="x" /></testcase>
<testcase classname="tests.test_a.TestUnit" name="c"><skipped type="pytest.xfail" /></testcase>
<testcase classname="tests.test_a" name="d"><skipped type="pytest.skip" /></testcase>
<testcase classname="tests.test_a" name="e"><error message="x" /></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which finds its roster beside itself."""
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("roster", "try_integrations"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import try_integrations

    yield try_integrations
    for name in ("roster", "try_integrations"):
        sys.modules.pop(name, None)


def test_every_integration_is_pinned_tested_and_shown(script: Any) -> None:
    folders = {path.parent.name for path in (ROOT / "integrations").glob("*/pyproject.toml")}
    assert {one.folder for one in script.INTEGRATIONS} == folders
    for one in script.INTEGRATIONS:
        assert all(re.fullmatch(r"[\w-]+==\d[\w.]*", package) for package in one.packages)
        assert (ROOT / "examples" / one.example).is_file()
        assert list((ROOT / "integrations" / one.folder / "tests").glob("test_*.py"))


def test_outcomes_are_counted_by_suite(script: Any) -> None:
    assert script.counts(ElementTree.fromstring(REPORT)) == {
        "`TestUnit`": Counter(passed=1, failed=1, xfailed=1),
        "ours": Counter(skipped=1, failed=1),
    }


def test_the_page_keeps_what_is_known_of_those_not_tried(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    first, second = (one.folder for one in script.INTEGRATIONS[:2])
    script.write_page(second, [f"| {second} | core 1 | ours | 1 | 0 | 0 | 0 |"])
    script.write_page(first, [f"| {first} | core 1 | ours | 2 | 0 | 0 | 0 |"])
    script.write_page(second, [f"| {second} | core 2 | ours | 3 | 0 | 0 | 0 |"])
    rows = [line for line in script.PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == [
        f"| {first} | core 1 | ours | 2 | 0 | 0 | 0 |",
        f"| {second} | core 2 | ours | 3 | 0 | 0 | 0 |",
    ]


@pytest.mark.clients
@pytest.mark.skipif(not URL, reason="CHUNKCACHE_CLIENTS_URL names no server")
@pytest.mark.parametrize("index", range(3))
def test_an_integration_passes_its_suites(script: Any, index: int) -> None:
    rows = script.tried(script.INTEGRATIONS[index], FOLDER.resolve(), URL)
    assert rows and [row for row in rows if not row.endswith(" | 0 |")] == []


# ---------------------------------------------------------------- filters of LangChain


@pytest.fixture
def server_filter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LangChain's translation needs nothing but the client's errors."""
    package = ModuleType("chunkcache_client")
    monkeypatch.setitem(sys.modules, "chunkcache_client", package)
    monkeypatch.setitem(sys.modules, "chunkcache_client.errors", chunkcache.errors)
    path = ROOT / "integrations" / "langchain" / "langchain_chunkcache" / "filters.py"
    spec = importlib.util.spec_from_file_location("langchain_filters", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.server_filter


DOCUMENTS: list[dict[str, str | float | bool]] = [
    {"kind": "bird", "page": 1.0}, {"kind": "mammal", "page": 2.0}, {"page": 3.0, "draft": True},
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "pages"),
    [
        (None, [1, 2, 3]),
        ({}, [1, 2, 3]),
        ({"kind": "bird"}, [1]),
        ({"draft": True}, [3]),
        ({"kind": "mammal", "page": 2}, [2]),
        ({"page": {"$gt": 1, "$lt": 3}}, [2]),
        ({"kind": {"$ne": "bird"}}, [2, 3]),
        ({"page": {"$in": [1, 3]}}, [1, 3]),
        ({"kind": {"$nin": ("bird",)}}, [2, 3]),
        ({"$or": [{"kind": "bird"}, {"page": {"$gte": 3}}]}, [1, 3]),
        ({"$and": [{"page": {"$lte": 2}}, {"kind": {"$ne": "bird"}}]}, [2]),
        ({"type": "eq", "key": "kind", "value": "bird"}, [1]),
        ({"type": "or", "filters": [{"type": "gt", "key": "page", "value": 2}]}, [3]),
        ({"type": "x", "page": 3}, []),  # a field named type
    ],
)
def test_a_filter_of_langchains_passes_what_it_says(
    server_filter: Any, given: Any, pages: list[int]
) -> None:
    made = server_filter(given)
    filters = None if made is None else TypeAdapter[Any](AttributeFilter).validate_python(made)
    passing = [one for one in DOCUMENTS if filters is None or filters.matches(one)]
    assert [one["page"] for one in passing] == pages


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda document: True, "filter: got 'a function'"),
        (["kind"], "filter: got 'list'"),
        ({"kind": {"$like": "b%"}}, r"filter.kind.\$like: got 'b%', must be one of \$eq"),
        ({"$nor": [{"kind": "bird"}]}, r"filter.\$nor: .* must be one of \$and, \$or"),
        ({"$or": []}, r"filter.\$or: got \[\], must be a list of filters"),
        ({"kind": ["bird"]}, r"filter.kind: got \['bird'\], must be a text"),
        ({"kind": None}, "filter.kind: got None, must be a text"),
        ({"page": {"$in": 3}}, r"filter.page.\$in: got 3, must be a list"),
        ({"page": {"$in": [None]}}, r"filter.page.\$in: got None, must be a text"),
    ],
)
def test_what_the_server_cannot_filter_by_is_refused_by_name(
    server_filter: Any, given: Any, message: str
) -> None:
    with pytest.raises(UnsupportedField, match=message):
        server_filter(given)
