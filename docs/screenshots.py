"""The pictures of the page in the README, made of a real server on the embedded model.

    python docs/screenshots.py            (make browser installs what it needs; some minutes)

Documents are pages of Python's own library. Questions are asked before and after the warm-up, so
that the cache has a history to show.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

from chunkcache.cli.stdlib_pages import write_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = Path(__file__).parent / "images"
MODULES = ("json.", "shutil.", "textwrap.", "tempfile.")
QUESTION = "Which argument of json.dumps sorts the keys of dictionaries in the output?"
QUESTIONS = (
    "What does shutil.which return when the command is not found?",
    "How does textwrap.shorten treat whitespace before it cuts the text?",
    "Who deletes the file made by tempfile.mkstemp?",
    "What does json.loads do with an empty text?",
)
ROUNDS = 4
WIDTH, HEIGHT = 1180, 860
COLOURS = 96


def main() -> None:
    """Make all pictures anew."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        make_history(url)
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT},
                    reduced_motion="reduce",
                )  # fmt: skip
                page = context.new_page()
                page.set_default_timeout(300_000)
                take_ask(page, url, IMAGES / f"page-ask-{scheme}.png")
                take_cache(page, url, IMAGES / f"page-cache-{scheme}.png")
                context.close()
            browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server with some documents, cold."""
    pages = folder / "pages"
    write_pages(pages)
    for path in pages.iterdir():
        if not path.name.startswith(MODULES):
            path.unlink()
    command = [sys.executable, "-m", "chunkcache", "--home", str(folder / "home")]
    subprocess.run([*command, "ingest", str(pages)], check=True)
    with subprocess.Popen(
        [*command, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            found = None
            while found is None:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError("the server did not start")
                found = re.search(r"(http://[^/\s]+)", line)
            yield found[1]
        finally:
            process.terminate()


def make_history(url: str) -> None:
    """Questions over cold chunks, a warm-up, and the same questions again."""
    with httpx.Client(base_url=url, timeout=600) as http:
        for number in range(ROUNDS):
            for question in QUESTIONS:
                ask(http, question)
            if number == 0:
                warm(http)


def ask(http: httpx.Client, question: str) -> None:
    """One short answer."""
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 4}
    http.post("/v1/chat/completions", json=body).raise_for_status()


def warm(http: httpx.Client) -> None:
    """Warm everything, and wait for it."""
    http.post("/v1/chunkcache/warm_up", json={"action": "start"}).raise_for_status()
    while http.get("/v1/chunkcache/warm_up").json()["state"] == "running":
        time.sleep(1)


def take_ask(page: Any, url: str, path: Path) -> None:
    """A question, its answer, and the same in full."""
    page.goto(f"{url}/#ask")
    page.get_by_role("switch").check()
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Longest answer").fill("48")
    page.get_by_text("Options", exact=True).click()
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#ask-status").filter(has_text="Answered twice.").wait_for()
    shoot(page, path)


def take_cache(page: Any, url: str, path: Path) -> None:
    """The cache's history."""
    page.goto(f"{url}/#cache")
    page.locator("#chart-bytes canvas").wait_for()
    shoot(page, path)


def shoot(page: Any, path: Path) -> None:
    """The whole page as a PNG of few colours, which is a third of the size."""
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
