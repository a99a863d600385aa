"""Answers to bodies that nobody reads: a client that is still sending gets to the answer."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.responses import JSONResponse

from chunkcache.server.linger import Linger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_BYTES = 2048
SENT_BYTES = 24 * 1024 * 1024  # more than the kernel holds of a connection
PIECE = b"x" * 65_536
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def small(serve_with: Callable[..., Any]) -> Any:
    return serve_with(max_body_bytes=LIMIT_BYTES, max_upload_bytes=LIMIT_BYTES)


def pieces(size_bytes: int) -> Iterator[bytes]:
    for _ in range(size_bytes // len(PIECE)):
        yield PIECE


TOO_LARGE = f"{LIMIT_BYTES} bytes. Hint: send less, or raise server.max_"


@pytest.mark.parametrize(
    ("path", "host", "declared", "status", "names"),
    [
        (EMBEDDINGS, "", True, 413, f"{TOO_LARGE}body_bytes"),
        (EMBEDDINGS, "", False, 413, f"{TOO_LARGE}body_bytes"),
        ("/v1/files", "", True, 413, f"{TOO_LARGE}upload_bytes"),
        (EMBEDDINGS, "evil.example", True, 403, "evil.example"),
        (EMBEDDINGS, "evil.example", False, 403, "evil.example"),
    ],
)
def test_a_client_that_only_sends_reads_the_answer_afterwards(
    small: Any, path: str, host: str, declared: bool, status: int, names: str
) -> None:
    # urllib reports a reset while it sends and does not look for an answer.
    data: Any = PIECE * (SENT_BYTES // len(PIECE)) if declared else pieces(SENT_BYTES)
    headers = {"content-type": "application/json"} | ({"host": host} if host else {})
    request = urllib.request.Request(f"{small.url}{path}", data=data, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert answer.status == status
        assert names in json.load(answer)["error"]["message"]
    assert small.service.requests == []


def test_a_route_that_takes_no_body_answers_all_the_same(small: Any) -> None:
    request = urllib.request.Request(f"{small.url}/nothing", data=pieces(SENT_BYTES))
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert (answer.status, json.load(answer)["error"]["code"]) == (404, "not_found")


def test_a_wrong_key_is_told_and_the_connection_is_of_use_again(
    serve_with: Callable[..., Any], tmp_path: Any
) -> None:
    (tmp_path / "keys").write_text("right tenant\n")
    served = serve_with(api_keys_file=tmp_path / "keys")
    ends = set()
    with httpx.Client(base_url=served.url, timeout=20) as client:
        for key, status in (("wrong", 401), ("right", 200)):
            response = client.post(
                EMBEDDINGS, json={"input": "a" * 1000}, headers={"authorization": f"Bearer {key}"}
            )
            assert response.status_code == status
            ends.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ends) == 1


def connected(url: str) -> socket.socket:
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 80), timeout=20)


def rest_of(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_who_waits_for_leave_to_send_gets_the_refusal_instead(small: Any) -> None:
    head = (
        f"POST {EMBEDDINGS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        "expect: 100-continue\r\nconnection: close\r\n"
    )
    with connected(small.url) as connection:
        connection.sendall(f"{head}content-length: 5000\r\n\r\n".encode())
        assert rest_of(connection).startswith(b"HTTP/1.1 413 ")
    with connected(small.url) as connection:
        connection.sendall(f"{head}content-length: 14\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b'{"input": "a"}')
        assert rest_of(connection).startswith(b"HTTP/1.1 200 ")


def test_a_refused_wish_for_leave_ends_the_connection(
    serve_with: Callable[..., Any], tmp_path: Any
) -> None:
    """The next request would be read as the body that was not sent."""
    (tmp_path / "keys").write_text("right tenant\n")
    served = serve_with(api_keys_file=tmp_path / "keys")
    head = f"POST {EMBEDDINGS} HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n"
    with connected(served.url) as connection:
        connection.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in answer


async def _refusing(scope: Any, receive: Any, send: Any) -> None:
    await JSONResponse({}, status_code=413, headers={"connection": "close"})(scope, receive, send)


async def _keeping(scope: Any, receive: Any, send: Any) -> None:
    await JSONResponse({}, status_code=413)(scope, receive, send)


HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n"


@pytest.mark.parametrize("refusing", [_refusing, _keeping])
def test_a_body_without_end_is_cut_off(live: Any, refusing: Any) -> None:
    app = Linger(refusing, most_bytes=1 << 20)
    with live.behind(app) as url, connected(url) as connection:
        connection.sendall(HEAD)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")  # before the body has come
        sent_bytes = 0
        with pytest.raises(ConnectionError):
            while sent_bytes < 64 << 20:
                connection.sendall(PIECE)
                sent_bytes += len(PIECE)
        assert 1 << 20 < sent_bytes < 64 << 20


@pytest.mark.parametrize("bounds", [{"silence_s": 0.02}, {"most_s": 0.02}])
@pytest.mark.parametrize("refusing", [_refusing, _keeping])
def test_who_stops_sending_is_let_go(live: Any, bounds: Any, refusing: Any) -> None:
    with live.behind(Linger(refusing, **bounds)) as url, connected(url) as connection:
        connection.sendall(HEAD + b"some")
        assert rest_of(connection).endswith(b"{}")


def test_who_goes_without_a_word_is_let_go(live: Any, logged: list[Any]) -> None:
    with live.behind(Linger(_refusing)) as url:
        with connected(url) as connection:
            connection.sendall(HEAD + b"some")
        with connected(url) as connection:
            connection.sendall(HEAD + b"some")
            connection.shutdown(socket.SHUT_WR)
            assert rest_of(connection).endswith(b"{}")
    assert logged == []
