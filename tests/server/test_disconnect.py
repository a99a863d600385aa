"""Clients that leave, and clients that read slowly."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx
import pytest

from chunkcache.server import pump


def request_bytes(served: Any, question: str, *, stream: bool) -> bytes:
    body = {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": question}],
        "stream": stream,
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def connect(served: Any) -> socket.socket:
    url = httpx.URL(served.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect((url.host, url.port))
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_answer(served: Any, stream: bool) -> None:
    connection = connect(served)
    connection.sendall(request_bytes(served, "hold on", stream=stream))
    answer = served.service.wait_for_answers(1)
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert not answer.cancelled.is_set()
    connection.close()
    assert answer.cancelled.wait(10)
    assert answer.ended.wait(10)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_its_answer_has_started(served: Any, stream: bool) -> None:
    connection = connect(served)
    connection.sendall(request_bytes(served, "cold feet", stream=stream))
    served.service.wait_for_preparing(1)
    (gone,) = served.service.preparing
    assert not gone.is_set()
    connection.close()
    assert gone.wait(10)
    assert served.service.answers == []


def test_answers_that_wait_for_the_model_hold_up_no_other_route(served: Any) -> None:
    """More of them than the server's shared thread pool has threads."""
    waiting = [connect(served) for _ in range(45)]
    for connection in waiting:
        connection.sendall(request_bytes(served, "cold feet", stream=False))
    served.service.wait_for_preparing(40)
    with httpx.Client(base_url=served.url, timeout=10) as client:
        assert client.get("/v1/files").status_code == 200
        upload = {"file": ("a.txt", b"some words")}
        assert client.post("/v1/files", files=upload, data={"purpose": "assistants"}).is_success
    served.service.wait_for_preparing(45)
    for connection in waiting:
        connection.close()
    for gone in served.service.preparing:
        assert gone.wait(10)


@pytest.mark.parametrize("stream", [True, False])
def test_a_finished_answer_is_not_cancelled(served: Any, stream: bool) -> None:
    body = {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": stream,
    }
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 200
    (answer,) = served.service.answers
    assert answer.ended.wait(10)
    assert not answer.cancelled.is_set()


def test_a_slow_reader_holds_its_own_answer_and_nobody_else(served: Any) -> None:
    num_words = 200_000
    slow = connect(served)
    slow.sendall(request_bytes(served, f"long {num_words}", stream=True))
    answer = served.service.wait_for_answers(1)
    # Others are served while the slow one's buffers are full, and memory stays bounded: the
    # answer's own iterator has not run to its end.
    for _ in range(3):
        body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "quick"}]}
        assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 200
    assert not answer.ended.is_set()
    assert answer.deltas_read < num_words
    slow.close()
    assert answer.cancelled.wait(10) and answer.ended.wait(10)


class BurstAnswer:
    """Yields without end and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.stopped = threading.Event()
        self.full = threading.Event()

    def events(self) -> Any:
        while not self.stopped.is_set():
            self.count += 1
            if self.count > pump.READ_AHEAD:
                self.full.set()
            yield object()

    def cancel(self) -> None:
        self.stopped.set()


def test_read_ahead_is_bounded_and_close_frees_the_thread() -> None:
    import asyncio

    async def main() -> None:
        async def receive() -> dict[str, str]:
            await asyncio.Event().wait()
            raise AssertionError

        answer = BurstAnswer()
        events = pump.AnswerPump(lambda gone: answer, receive)
        assert await asyncio.to_thread(answer.full.wait, 10)
        await asyncio.sleep(0.05)
        assert answer.count == pump.READ_AHEAD + 1
        await anext(events)
        events.close()
        events.close()
        assert answer.stopped.is_set()

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "answer-pump":
            thread.join(10)
            assert not thread.is_alive()
