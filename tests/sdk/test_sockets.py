"""Real sockets that break off, close, keep silent, or are not there."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import ServerUnreachable
from chunkcache.protocol import AnswerDelta, AnswerStarted

if TYPE_CHECKING:
    from collections.abc import Iterator


def raw_server(reply: bytes) -> Iterator[str]:
    """Accepts one connection, reads the request, sends bytes, closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("manner", ["sync over a socket", "async over a socket"])
def test_a_stream_cut_by_a_dying_server_raises_after_the_pieces(
    open_caller: Any, wire: bytes, manner: str
) -> None:
    cut = wire[: wire.index(b" there")]
    piece = wire[: cut.rindex(b"\n\n") + 2]
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for sent in (piece, cut):
        for url in raw_server(head + b"%x\r\n%s\r\n" % (len(sent), sent)):
            events = []
            with pytest.raises(ServerUnreachable):
                for event in open_caller(manner, base_url=url).stream("hello"):
                    events.append(event)
            assert [type(event) for event in events] == [AnswerStarted, AnswerDelta]


@pytest.mark.parametrize("manner", ["sync over a socket", "async over a socket"])
def test_a_whole_answer_cut_short_is_no_answer(open_caller: Any, manner: str) -> None:
    body = json.dumps({"version": "9"}).encode()
    for url in raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n" + body):
        with pytest.raises(ServerUnreachable):
            open_caller(manner, base_url=url, retries=0)("version")


@pytest.mark.parametrize("manner", ["sync over a socket", "async over a socket"])
def test_nobody_listening_is_unreachable(open_caller: Any, manner: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    caller = open_caller(manner, base_url=f"http://127.0.0.1:{port}", retries=0)
    with pytest.raises(ServerUnreachable, match=str(port)):
        caller("version")
    with pytest.raises(ServerUnreachable):
        list(caller.stream("hello"))


@pytest.mark.parametrize("manner", ["sync over a socket", "async over a socket"])
def test_silence_longer_than_the_limit_is_unreachable(
    served: Any, open_caller: Any, manner: str
) -> None:
    caller = open_caller(manner, base_url=served.url, timeout_s=1.0)
    with pytest.raises(ServerUnreachable, match="timed out"):
        caller("ask", "hold on")
    assert served.service.answers[0].cancelled.wait(10)
    assert len(served.service.answers) == 1  # and not asked again
