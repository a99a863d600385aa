"""Work in threads: so much at once, the rest in order, and nobody else waits for it."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from chunkcache.server import lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Held:
    """Calls that wait to be let go; how many there were, and the most at once."""

    def __init__(self, true: Callable[..., Any]) -> None:
        self.go_on = threading.Event()
        self.entered = 0
        self.peak = 0
        self._inside = 0
        self._changed = threading.Condition()
        self._true = true

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._changed:
            self.entered += 1
            self._inside += 1
            self.peak = max(self.peak, self._inside)
            self._changed.notify_all()
        assert self.go_on.wait(30)
        with self._changed:
            self._inside -= 1
        return self._true(*args, **kwargs)

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.entered >= count, timeout=20)


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(100) as pool:
        yield pool


def post_embedding(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": "some words"}, timeout=60)


def post_file(url: str) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/files", files={"file": ("a.txt", b"words")}, data={"purpose": "assistants"},
        timeout=60,
    )  # fmt: skip


def ask(url: str, question: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": question}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def look_around(url: str) -> None:
    with httpx.Client(base_url=url, timeout=20) as client:
        for path in ("/health", "/v1/files", "/v1/vector_stores", "/v1/models", "/metrics"):
            assert client.get(path).status_code == 200, path


def all_of(futures: list[Future[httpx.Response]]) -> list[int]:
    return [future.result(60).status_code for future in futures]


def test_45_cold_answers_uploads_and_embeddings_hold_up_no_look(
    serve_with: Callable[..., Any], callers: ThreadPoolExecutor
) -> None:
    served = serve_with(queue_limit=100)
    embedding = served.service.embed = Held(served.service.embed)
    adding = served.app.state.shelf.add = Held(served.app.state.shelf.add)
    try:
        cold = [callers.submit(ask, served.url, "cold feet") for _ in range(30)]
        served.service.wait_for_preparing(30)
        works = [callers.submit(post_embedding, served.url) for _ in range(30)]
        works += [callers.submit(post_file, served.url) for _ in range(30)]
        embedding.wait_for(1)
        look_around(served.url)
        assert ask(served.url, "quick").status_code == 200
    finally:
        served.service.warm.set()
        embedding.go_on.set()
        adding.go_on.set()
    assert all_of(cold + works) == [200] * 90
    assert 0 < embedding.peak + adding.peak <= 2 * 16
    assert (embedding.entered, adding.entered) == (30, 30)


def test_no_more_work_at_once_than_the_setting_says(
    serve_with: Callable[..., Any], callers: ThreadPoolExecutor
) -> None:
    served = serve_with(working_limit=2)
    held = served.service.embed = Held(served.service.embed)
    works = [callers.submit(post_embedding, served.url) for _ in range(10)]
    held.wait_for(2)
    look_around(served.url)
    held.go_on.set()
    assert all_of(works) == [200] * 10
    assert (held.peak, held.entered) == (2, 10)


def test_a_lane_with_too_many_before_it_says_when_to_come_back(
    serve_with: Callable[..., Any], callers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_MOST_WAITING", 3)
    served = serve_with(working_limit=1)
    held = served.service.embed = Held(served.service.embed)
    works = [callers.submit(post_embedding, served.url) for _ in range(20)]
    held.wait_for(1)
    done: list[httpx.Response] = []
    while len(done) < 16:  # all but the one inside and the three in front of it
        done = [work.result() for work in works if work.done()]
    assert {response.status_code for response in done} == {429}
    assert all(int(response.headers["retry-after"]) >= 1 for response in done)
    held.go_on.set()
    assert sorted(all_of(works)) == [200] * 4 + [429] * 16


def test_who_has_gone_while_waiting_is_not_worked_for(
    serve_with: Callable[..., Any], callers: ThreadPoolExecutor, logged: list[Any]
) -> None:
    served = serve_with(working_limit=1)
    held = served.service.embed = Held(served.service.embed)
    first = callers.submit(post_embedding, served.url)
    held.wait_for(1)
    address = httpx.URL(served.url)
    body = b'{"input": "some words"}'
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    gone = socket.create_connection((address.host, address.port), timeout=10)
    gone.sendall(head.encode() + body)
    while served.app.state.lane.waiting < 1:
        continue
    gone.close()
    # seen by the server before the next one's request is even sent
    last = callers.submit(post_embedding, served.url)
    while served.app.state.lane.waiting < 2:
        continue
    held.go_on.set()
    assert all_of([first, last]) == [200, 200]
    assert held.entered == 2
    assert "client_disconnected" in {entry["event"] for entry in logged}
