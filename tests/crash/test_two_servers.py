"""Two servers on one home, one of them killed: what either has acknowledged is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from chunkcache import ChunkCache

CHILD = Path(__file__).with_name("child.py")
UPLOADS = 12  # of each of two threads to each server
NAMES = ("notes.txt", "plan.md", "a/readme.md")  # the same ones on both


@contextmanager
def serving(settings: Any) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    given = settings.model_dump(mode="json", exclude_unset=True)
    process = subprocess.Popen(
        [sys.executable, str(CHILD), json.dumps(given), "serve"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        ready = next(line for line in process.stdout if line.startswith("ready"))
        url = ready.split()[1]
        yield process, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Uploads:
    """What was acknowledged: the text of each file, by its id."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.attached: set[str] = set()
        self.deleted: set[str] = set()
        self.failures: list[BaseException] = []

    def run(self, client: openai.OpenAI, who: str, after: Callable[[], None]) -> None:
        try:
            for number in range(UPLOADS):
                text = f"Fact {number} of {who} about owls."
                name = NAMES[number % len(NAMES)]
                file = client.files.create(file=(name, text.encode()), purpose="assistants")
                self.texts[file.id] = text
                made = client.vector_stores.files.create("default", file_id=file.id)
                if made.status == "completed":
                    self.attached.add(file.id)
                if number % 4 == 3:
                    self.deleted.add(file.id)  # from here on nobody knows, until it is gone
                    client.files.delete(file.id)
                after()
        except (openai.APIConnectionError, httpx.HTTPError):
            return  # its server was killed
        except BaseException as error:
            self.failures.append(error)


def test_no_acknowledged_upload_is_lost(tiny_settings: Callable[..., Any]) -> None:
    settings = tiny_settings()
    uploads = Uploads()
    with serving(settings) as (first, one), serving(settings) as (_, two):
        done = threading.Semaphore(0)
        threads = [
            threading.Thread(target=uploads.run, args=(client, f"{name}{n}", done.release))
            for name, client in (("one", one), ("two", two))
            for n in range(2)
        ]
        for thread in threads:
            thread.start()
        for _ in range(UPLOADS):
            done.acquire(timeout=60)
        first.kill()
        for thread in threads:
            thread.join(120)
        assert uploads.failures == []
        kept = set(uploads.texts) - uploads.deleted
        assert len(kept & uploads.attached) > UPLOADS  # of both servers
        for file_id in kept:
            held = two.files.retrieve(file_id)
            assert held.bytes == len(uploads.texts[file_id])
        listed = {file.id for file in two.vector_stores.files.list("default", limit=100)}
        assert listed >= kept & uploads.attached
        for file_id in kept & uploads.attached:
            hits = two.vector_stores.search("default", query=uploads.texts[file_id]).data
            assert uploads.texts[file_id] in [hit.content[0].text for hit in hits]
    with ChunkCache(settings) as cache:  # and after a restart
        texts = {cache.document_text(info.document_id)[1] for info in cache.documents()}
        assert {uploads.texts[file_id] for file_id in kept & uploads.attached} <= texts
        by_text = {text: file_id for file_id, text in uploads.texts.items()}
        left_over = {by_text[text] for text in texts} & uploads.deleted
        assert len(left_over) <= 2  # of requests that the kill cut short
