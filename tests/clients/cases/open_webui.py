"""Open WebUI as it is installed, driven in a browser: one message, its answer, what is under it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright
from report import BASE_URL, EMBEDDER, KEY, MODEL, tried

QUESTION = "Which model id never retrieves passages?"
START_TIMEOUT_S = 240
ANSWER_TIMEOUT_MS = 240_000


@contextmanager
def served() -> Iterator[str]:
    """Open WebUI with an empty home, with this server and nothing else to talk to."""
    home = Path.cwd() / "data"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {
        "DATA_DIR": str(home), "OPENAI_API_BASE_URL": BASE_URL, "OPENAI_API_KEY": KEY,
        "WEBUI_AUTH": "False", "ENABLE_OLLAMA_API": "False", "WEBUI_SECRET_KEY": "unused",
        # it would fetch models and notices of new versions otherwise
        "OFFLINE_MODE": "True", "HF_HUB_OFFLINE": "1", "ENABLE_VERSION_UPDATE_CHECK": "False",
        "RAG_EMBEDDING_ENGINE": "openai", "RAG_EMBEDDING_MODEL": EMBEDDER,
        "RAG_OPENAI_API_BASE_URL": BASE_URL, "RAG_OPENAI_API_KEY": KEY,
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("open-webui")), "serve", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with (home / "log").open("wb") as log:
        running = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], env={**os.environ, **told}, cwd=home,
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            for _ in range(START_TIMEOUT_S):
                time.sleep(1)
                try:
                    if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    assert running.poll() is None, (home / "log").read_text()[-300:]
            yield url
        finally:
            running.terminate()
            running.wait(30)


def ask(page: Page, url: str) -> None:
    page.goto(f"{url}/?models={MODEL}")
    page.locator("#chat-input").wait_for()
    news = page.get_by_role("button", name="Okay, Let's Go!")
    if news.count():
        news.click()
    page.locator("#chat-input").click()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")


def main() -> None:
    with served() as url, sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(ANSWER_TIMEOUT_MS)
        answer = page.locator("[id^=message-] #response-content-container").first
        try:
            with tried("a message in a new chat"):
                ask(page, url)
                answer.filter(has_text="a").wait_for()
            with tried("its sources under the answer"):
                page.get_by_role("button", name="Source").first.wait_for()
            with tried("no error is shown"):
                shown = page.locator("body").inner_text()
                assert "nsupported" not in shown and "rror" not in shown, shown[-300:]
        finally:
            page.screenshot(path="last.png")
            browser.close()


main()
