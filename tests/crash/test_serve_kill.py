"""kill -9 of `chunkcache serve` under load: what it acknowledged is there, what it said was right.

`CHUNKCACHE_TEST_KILLS` and `CHUNKCACHE_TEST_SEED`: as in `test_kill.py`.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from chunkcache import ChunkCache
from chunkcache.server.app import create_app
from chunkcache.service.diagnosis import check_records

KILLS = int(os.environ.get("CHUNKCACHE_TEST_KILLS", "3"))
SEED = int(os.environ.get("CHUNKCACHE_TEST_SEED", "1"))
MOST_TOLD = 24  # acknowledgements before a kill
TEXTS = [f"Item {n}: " + f"the fox number {n} jumps. " * 6 for n in range(30)]
PROMPTS = [tuple(random.Random(n).sample(TEXTS, 4)) for n in range(12)]


@dataclass(frozen=True)
class Said:
    """A whole answer: its text, the log-probability of each token, where its passages lay."""

    prompt: int
    text: str
    logprobs: list[float]
    tiers: list[str | None]


@dataclass
class Told:
    """What a server's clients heard from it before it was killed."""

    texts: dict[str, str] = field(default_factory=dict)  # by file
    attached: set[str] = field(default_factory=set)  # files in the vector store
    answers: list[Said] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    heard: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@contextmanager
def serving(settings: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a user starts it, and its address."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    assigned = [
        f"{section}.{name}={json.dumps(value)}"
        for section, fields in given.items()
        if isinstance(fields, dict)
        for name, value in fields.items()
    ]
    options = [part for each in assigned for part in ("--set", each)]
    process = subprocess.Popen(
        [sys.executable, "-m", "chunkcache", "--log-json", "--home", given["home"],
         "--set", f"cache={given['cache']}", *options, "serve", "--port", "0"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the server ended before it served"
        yield process, json.loads(line)["page"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(client: httpx.Client, prompt: int, *, stream: bool = False) -> Said:
    """One of `PROMPTS`, answered from reused KV as it is: what it was made of decides the answer.

    Raises:
        httpx.TransportError: the server went away before it was whole.
    """
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "which?"}],
        "documents": [{"text": text} for text in PROMPTS[prompt]],
        "max_tokens": 3, "temperature": 0, "logprobs": True, "stream": stream,
        "chunkcache": {"policy": "none", "budget": 0},
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if not stream:
        parts = [answer.json()]
        pieces = [parts[0]["choices"][0]["message"]["content"]]
    else:
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        parts = [json.loads(line) for line in lines]
        pieces = [c["delta"].get("content") or "" for part in parts for c in part["choices"]]
    choices = [choice for part in parts for choice in part["choices"]]
    tokens = [t for c in choices if c.get("logprobs") for t in c["logprobs"]["content"]]
    report = next(p["chunkcache"] for p in parts if "spans" in p.get("chunkcache", {}))
    tiers = [span["tier"] for span in report["spans"] if span["kind"] == "chunk"]
    return Said(prompt, "".join(pieces), [token["logprob"] for token in tokens], tiers)


def ask_on(client: httpx.Client, seed: int, told: Told) -> None:
    chance = random.Random(seed)
    while True:
        said = ask(client, chance.randrange(len(PROMPTS)), stream=chance.random() < 0.5)
        told.answers.append(said)
        told.heard.release()


def upload_on(client: httpx.Client, seed: int, told: Told) -> None:
    for number in range(100_000):
        text = f"Fact {number} of life {seed} about owls."
        file = client.post(
            "/v1/files",
            files={"file": (f"{seed}-{number}.txt", text.encode())},
            data={"purpose": "assistants"},
        )
        assert file.status_code == 200, file.text
        told.texts[file.json()["id"]] = text
        told.heard.release()
        made = client.post(
            "/v1/vector_stores/default/files", json={"file_id": file.json()["id"]}
        ).raise_for_status()
        assert made.json()["status"] == "completed"
        told.attached.add(file.json()["id"])
        told.heard.release()


def until_killed(work: Callable[..., None], url: str, seed: int, told: Told) -> threading.Thread:
    """Do it in a thread until the server is gone; what else goes wrong is kept."""

    def run() -> None:
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                work(client, seed, told)
        except httpx.TransportError:
            return
        except BaseException as error:
            told.failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def assert_uploads_are_there(client: httpx.Client, told: Told) -> None:
    for file_id, text in told.texts.items():
        assert client.get(f"/v1/files/{file_id}/content").raise_for_status().text == text
    for file_id in told.attached:
        place = client.get(f"/v1/vector_stores/default/files/{file_id}").raise_for_status()
        assert place.json()["status"] == "completed"
        asked = {"query": told.texts[file_id], "max_num_results": 50}
        found = client.post("/v1/vector_stores/default/search", json=asked).raise_for_status()
        assert file_id in [hit["file_id"] for hit in found.json()["data"]]


def assert_home_is_sound(settings: Any) -> None:
    report = check_records(settings, fix=False, drop_stale=False)
    assert report.problems == [] and report.orphans == 0 and report.models <= 1
    with closing(sqlite3.connect(settings.home / "catalog.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def assert_same(said: Said, cold: Said) -> None:
    assert said.text == cold.text
    assert said.logprobs == pytest.approx(cold.logprobs, abs=1e-4)


def test_killed_servers_keep_what_they_acknowledged_and_answered_rightly(
    tiny_settings: Callable[..., Any], live: Any, tmp_path: Any
) -> None:
    chance = random.Random(SEED + 2)
    settings = tiny_settings()
    lives: list[Told] = []
    for number in range(KILLS):
        with serving(settings) as (process, url):
            if lives:
                with httpx.Client(base_url=url, timeout=60) as client:
                    assert_uploads_are_there(client, lives[-1])
            told = Told()
            lives.append(told)
            work = [(upload_on, number), (ask_on, 2 * number), (ask_on, 2 * number + 1)]
            threads = [until_killed(load, url, seed, told) for load, seed in work]
            for _ in range(chance.randrange(1, MOST_TOLD)):
                assert told.heard.acquire(timeout=60), "nothing was acknowledged in a minute"
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, 0.05))
            assert process.poll() is None, "it ended by itself"
            process.kill()
            for thread in threads:
                thread.join(60)
        assert told.failures == []
        assert_home_is_sound(settings)
    compare_with_cold(settings, tiny_settings(home=tmp_path / "cold"), live, lives)


@contextmanager
def at_home(settings: Any, live: Any) -> Iterator[httpx.Client]:
    """A client of a server over it that is in this process, and not killed."""
    with (
        ChunkCache(settings) as cache,
        live.behind(create_app(cache)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def compare_with_cold(settings: Any, cold: Any, live: Any, lives: list[Told]) -> None:
    """All that was said in any life, and what the home says now, beside a home that never was."""
    with at_home(cold, live) as client:
        right = [ask(client, prompt) for prompt in range(len(PROMPTS))]
    for told in lives:
        for said in told.answers:
            assert_same(said, right[said.prompt])
    with at_home(settings, live) as client:
        for told in lives:
            assert_uploads_are_there(client, told)
        again = [ask(client, prompt) for prompt in range(len(PROMPTS))]
    for said in again:
        assert_same(said, right[said.prompt])
    after_kills = [s for told in lives[1:] for s in told.answers] + again
    assert any("disk" in said.tiers for said in after_kills), "no record of a life before was read"
    assert any(told.attached for told in lives) and any(told.answers for told in lives)
    counts = {
        "kills": len(lives),
        "uploads": sum(len(told.texts) for told in lives),
        "attached": sum(len(told.attached) for told in lives),
        "answers": sum(len(told.answers) for told in lives),
        "passages from disk": sum(said.tiers.count("disk") for said in after_kills),
    }
    print(counts)
