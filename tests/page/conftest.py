"""A real Chromium on the real server; behind it is the fake service unless a test says so."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chunkcache.config import Settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture
def serve_with(support: Any, fake: Any, live: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:

        def start(queue_limit: int = 8, **server: Any) -> Any:
            settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", server=server)
            made = fake.FakeService(settings, queue_limit=queue_limit)
            support("fake_states").furnish(made)
            return stack.enter_context(live.serving(made))

        yield start


@pytest.fixture
def served(serve_with: Callable[..., Any]) -> Any:
    return serve_with()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for one file: playwright's loop must not run under the loops of other tests."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (make browser)"
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is in the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


class Problems(list[str]):
    """What a browser complained about: scripts, the security policy, resources, dialogs."""

    def watch(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.append(f"exception: {error}"))
        page.on("console", self._console)
        page.on("dialog", self._dialog)

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.append(f"{message.type}: {message.text}")

    def _dialog(self, dialog: Any) -> None:
        self.append(f"a script opened a dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(served, "corpus", scheme="dark", width=360)`. Any complaint fails the test.

    A test that provokes some takes them out of `page.problems`.
    """
    opened = []

    def open_one(
        served: Any, section: str = "ask", *, scheme: str = "light", width: int = 1280
    ) -> Any:
        context = chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce"
        )
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.problems = Problems()
        page.problems.watch(page)
        opened.append((context, page.problems))
        page.goto(f"{served.url}/#{section}")
        page.locator(f"#{section}").wait_for()
        return page

    yield open_one
    for context, _ in opened:
        context.close()
    assert [problem for _, problems in opened for problem in problems] == []


@pytest.fixture
def axe() -> Callable[[Any], list[str]]:
    """`axe(page)`: what axe-core finds wrong with what is shown now."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed (make browser)")
    source = AXE.read_text(encoding="utf-8")

    def run(page: Any) -> list[str]:
        if not page.evaluate("'axe' in window"):
            page.evaluate(source)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete']})")
        assert len(found["passes"]) > 10  # it looked
        return [
            f"{problem['id']}: {node['html'][:120]} ({node['failureSummary'][:200]})"
            for problem in found["violations"]
            for node in problem["nodes"]
        ]

    return run
