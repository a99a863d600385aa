"""Bodies that are no proper request: malformed, mistyped, of the wrong type, too large."""

from __future__ import annotations

import gzip
import socket
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
LIMIT_BYTES = 2048


def error_of(response: httpx.Response) -> Any:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_required_parameter"),
        (b"{", "invalid_json"),
        (b'{"model": "tiny-chat",}', "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b"\x80{}", "invalid_json"),
        (b"[" * 100_000, "invalid_value"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_value"),
        (b'{"temperature": NaN}', "invalid_json"),
        (b'{"seed": 1e400}', "invalid_value"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b'"text"', "invalid_type"),
        (b"{}", "missing_required_parameter"),
    ],
    ids=[
        "empty",
        "cut",
        "comma",
        "utf-16",
        "not-utf8",
        "deep",
        "digits",
        "nan",
        "infinite",
        "list",
        "null",
        "text",
        "no-field",
    ],
)
def test_a_malformed_body_is_a_bad_request(http: httpx.Client, body: bytes, code: str) -> None:
    response = http.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["code"] == code


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_named_and_not_parsed(http: httpx.Client, kind: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "hello"}]}'
    response = http.post(CHAT, content=body, headers={"content-type": kind} if kind else {})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "invalid_content_type")
    assert "application/json" in error["message"] and (kind or "none") in error["message"]


def test_a_compressed_body_is_named_as_such(http: httpx.Client) -> None:
    body = gzip.compress(b'{"messages": [{"role": "user", "content": "hello"}]}')
    response = http.post(CHAT, content=body, headers={**JSON, "content-encoding": "gzip"})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, "content-encoding")
    assert "'gzip'" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        rb'{"model": "\ud800", "messages": [{"role": "user", "content": "x"}]}',
        rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
        rb'{"messages": [{"role": "user", "content": [{"type": "\ud800"}]}]}',
        rb'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]}',
        rb'{"messages": [{"role": "user", "content": "x"}], "\ud800": 1}',
        rb'{"messages": [{"role": "user", "content": "x"}], "documents": [{"text": "\ud800"}]}',
    ],
)
def test_half_a_surrogate_pair_is_a_bad_request(
    served: Any, http: httpx.Client, body: bytes
) -> None:
    response = http.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400, response.text
    assert error_of(response)["type"] == "invalid_request_error"
    assert served.service.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
        ("POST", "/v1/assistants", 404, "not_found"),
    ],
)
def test_unknown_routes_and_methods_have_the_error_object(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert f"{method} {path}" in error_of(response)["message"]


@pytest.fixture
def small(serve_with: Callable[..., Any]) -> Any:
    return serve_with(max_body_bytes=LIMIT_BYTES, max_upload_bytes=LIMIT_BYTES)


def chat_body(size_bytes: int) -> bytes:
    frame = b'{"messages": [{"role": "user", "content": "%s"}]}'
    return frame % (b"x" * (size_bytes - len(frame) + 2))


def in_pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 500):
        yield data[start : start + 500]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_the_limit_is_exact(small: Any, declared: bool) -> None:
    for size_bytes, status in ((LIMIT_BYTES, 200), (LIMIT_BYTES + 1, 413)):
        body = chat_body(size_bytes)
        assert len(body) == size_bytes
        content = body if declared else in_pieces(body)
        response = httpx.post(f"{small.url}{CHAT}", content=content, headers=JSON)
        assert response.status_code == status
    error = error_of(response)
    assert error["code"] == "request_too_large" and str(LIMIT_BYTES) in error["message"]
    assert response.headers["connection"] == "close"
    assert len(small.service.requests) == 1


def test_a_body_that_lies_about_its_length_is_cut_off(small: Any) -> None:
    url = httpx.URL(small.url)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(f"{head}content-length: 999999999999\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_upload_over_the_body_limit_is_refused(small: Any) -> None:
    for content in (b"x" * LIMIT_BYTES, b"x" * 5_000_000):
        with pytest.raises(openai.APIStatusError) as caught:
            small.client().files.create(file=("big.txt", content), purpose="assistants")
        assert caught.value.status_code == 413
        assert caught.value.code == "request_too_large"


def test_an_upload_has_a_limit_of_its_own(serve_with: Callable[..., Any]) -> None:
    served = serve_with(max_body_bytes=LIMIT_BYTES)
    content = b"x" * (3 * LIMIT_BYTES)
    assert served.client().files.create(file=("a.txt", content), purpose="assistants").bytes
    response = httpx.post(f"{served.url}/v1/embeddings", json={"input": content.decode()})
    assert response.status_code == 413


def test_a_file_over_the_file_limit_is_refused(serve_with: Callable[..., Any]) -> None:
    served = serve_with(retrieval={"max_file_bytes": 100})
    assert served.client().files.create(file=("a.txt", b"x" * 100), purpose="assistants").bytes
    with pytest.raises(openai.APIStatusError) as caught:
        served.client().files.create(file=("a.txt", b"x" * 101), purpose="assistants")
    assert (caught.value.status_code, caught.value.param) == (413, "file")
    assert "max_file_bytes" in caught.value.message
