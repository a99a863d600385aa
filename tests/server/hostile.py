"""Hostile requests, seeded: broken bodies, odd values, strange paths, bytes that are no HTTP.

As a script: python tests/server/hostile.py URL COUNT SEED asks a running server, prints what it
answered, by status, and fails if any answer was a server error or no error object.
"""

from __future__ import annotations

import json
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

USER = {"role": "user", "content": "where is the cat"}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": None, "messages": [{"role": "system", "content": "be brief"}, USER],
        "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "stream": False,
        "stop": ["x"], "user": "me", "metadata": {"a": "b"}, "n": 1,
        "documents": [{"id": "1", "title": "t", "text": "a cat sat", "url": ""}],
        "chunkcache": {"mode": "auto", "policy": "question", "budget": 0.2},
    },
    "/v1/completions": {"prompt": "where is the cat", "max_tokens": 1, "echo": False, "n": 1},
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "where?"}]}],
        "instructions": "be brief", "max_output_tokens": 16, "store": True,
        "tools": [{"type": "file_search", "vector_store_ids": ["default"]}],
    },
    "/v1/embeddings": {"input": ["one", "two"], "encoding_format": "float"},
    "/v1/vector_stores": {"name": "store", "file_ids": []},
    "/v1/vector_stores/default/files": {"file_id": "file-abc", "attributes": {"a": 1.5, "b": "c"}},
    "/v1/vector_stores/default/search": {"query": "cat", "max_num_results": 3},
}  # fmt: skip
PATHS = [
    *BODIES, "/v1/files", "/v1/models", "/health", "/version", "/metrics", "/openapi.json",
    "/v1/files/{id}", "/v1/models/{id}", "/v1/vector_stores/{id}", "/documents/{id}",
    "/v1/vector_stores/{id}/files/{id}", "/v1/vector_stores/default/files/{id}",
    "/v1/responses/{id}", "/v1/responses/{id}/input_items", "/{id}", "/v1/{id}",
]  # fmt: skip
METHODS = ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "X" * 20]
TEXTS = [
    "", " ", "\x00", "x" * 5000, "\u202e\ud7ff\uffff", "../../etc/passwd", "%00", "'; --", "[/etc]",
    "😀" * 300, "\r\nx-evil: 1", "a/b/c", "default", "file-00", "null", "-1", "<script>",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**200, 0.1, -0.0, 1e308, 5e-324,
    [], {}, [[]], [None], {"": ""}, {"$ref": "#"}, [1] * 500, ["x"] * 300, {"type": "text"},
    [{"type": "image_url", "image_url": {"url": "data:,"}}], *TEXTS,
]  # fmt: skip
RAW_VALUES = [
    "NaN", "Infinity", "1e999", "-1e-999", "9" * 400, '"\\ud800"', '"\\u0000"', "[" * 70 + "]" * 70,
    "[" * 5000, '{"a":' * 5000, "tru", "01", "'x'", '"\\x"', "\x0b", '"unfinished',
]  # fmt: skip
TYPES = [
    "application/json", "application/json; charset=utf-16", "application/problem+json",
    "text/plain",
    "multipart/form-data", "multipart/form-data; boundary=", "application/x-www-form-urlencoded",
    "", "application/json" + "x" * 3000, "\xff/\xfe",
]  # fmt: skip

_POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"


@dataclass(frozen=True, slots=True)
class Hostile:
    """One request; `raw`: bytes to be sent as they are instead."""

    method: str = "GET"
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    chunked: bool = False
    raw: bytes | None = None


def hostile_requests(count: int, seed: int) -> Iterator[Hostile]:
    """So many requests, the same for the same seed."""
    rng = random.Random(seed)
    kinds = [_mutated, _mutated, _mutated, _cut, _strange_path, _form, _form, _not_http]
    for _ in range(count):
        yield rng.choice(kinds)(rng)


def _mutated(rng: random.Random) -> Hostile:
    """A valid body with one to four of its parts replaced, removed or added."""
    path = rng.choice(list(BODIES))
    body = json.loads(json.dumps(BODIES[path]))
    for _ in range(rng.randint(1, 4)):
        body = _mutate(rng, body)
    text = json.dumps(body)
    if rng.random() < 0.3:
        text = text.replace('"', rng.choice(RAW_VALUES), 1) if rng.random() < 0.3 else text
        text = text.replace(": ", f": {rng.choice(RAW_VALUES)},", 1)
    return _json(rng, path, text.encode("utf-8", "surrogatepass"))


def _mutate(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.15:
            return {other: inner for other, inner in value.items() if other != name}
        if chance < 0.3:
            return {**value, rng.choice([*TEXTS, *BODIES, "tools", "n"]): rng.choice(VALUES)}
        return {**value, name: _mutate(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        return [*value[:index], _mutate(rng, value[index]), *value[index + 1 :]]
    return rng.choice(VALUES)


def _json(rng: random.Random, path: str, content: bytes) -> Hostile:
    kind = rng.choice(TYPES) if rng.random() < 0.1 else "application/json"
    return Hostile("POST", path, {"content-type": kind}, content, chunked=rng.random() < 0.2)


def _cut(rng: random.Random) -> Hostile:
    """A body that ends early, has a byte changed, or is something else altogether."""
    path = rng.choice(list(BODIES))
    content = bytearray(json.dumps(BODIES[path]).encode())
    match rng.randrange(4):
        case 0:
            del content[rng.randrange(len(content)) :]
        case 1:
            content[rng.randrange(len(content))] = rng.randrange(256)
        case 2:
            content = bytearray(rng.choice(RAW_VALUES).encode())
        case _:
            content = bytearray(rng.randbytes(rng.randrange(3000)))
    return _json(rng, path, bytes(content))


def _strange_path(rng: random.Random) -> Hostile:
    path = rng.choice(PATHS)
    while "{id}" in path:
        path = path.replace("{id}", quote(rng.choice(TEXTS), safe=rng.choice(["", "/"])), 1)
    query = "&".join(
        f"{rng.choice(['limit', 'after', 'order', 'purpose', 'start', 'end', 'tenant', 'x'])}="
        f"{quote(str(rng.choice(VALUES))[:500])}"
        for _ in range(rng.randrange(4))
    )
    headers = {"x-request-id": rng.choice(["a", "b" * 100, "ü"])} if rng.random() < 0.3 else {}
    if rng.random() < 0.2:
        headers["host"] = rng.choice(["evil.example", "localhost", "[::1", "a:b:c", "x" * 300])
    if rng.random() < 0.2:
        headers["authorization"] = rng.choice(["", "Bearer", "Bearer x y", "Basic eA=="])
    return Hostile(rng.choice(METHODS), f"{path}?{query}", headers)


def _form(rng: random.Random) -> Hostile:
    """An upload, well-formed or not."""
    line, end = b"--edge\r\n", b"--edge--\r\n"
    name = (
        quote(rng.choice(TEXTS)) if rng.random() < 0.5 else rng.choice(["a.txt", "b.pdf", "c.md"])
    )
    parts = [
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + rng.randbytes(rng.randrange(500)) + b"\r\n",
        b'Content-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n',
        b'Content-Disposition: form-data; name="x"\r\n\r\n1\r\n',
        b"Content-Disposition: form-data\r\n\r\n1\r\n", b"no header\r\n", b"\r\n\r\n",
        b'Content-Disposition: form-data; name="purpose"\r\n\r\n' + b"y" * 2_000_000 + b"\r\n",
    ]  # fmt: skip
    some = parts[:2] if rng.random() < 0.4 else rng.choices(parts, k=rng.randint(0, 5))
    content = b"".join(line + part for part in some) + (end if rng.random() < 0.8 else b"")
    if rng.random() < 0.1:
        content = (line + parts[2]) * 2000 + end
    edge = rng.choice(["edge", "edge", "edge", "other", "e" * 300, ""])
    kind = f"multipart/form-data; boundary={edge}"
    return Hostile("POST", "/v1/files", {"content-type": kind}, content)


def _not_http(rng: random.Random) -> Hostile:
    raw = rng.choice(
        [
            b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
            b"\r\n" * 50,
            b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            _POST + b"content-length: -5\r\n\r\n",
            _POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
            _POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
            _POST + b"content-length: 50\r\n\r\n{",
            _POST + b"expect: 100-continue\r\n\r\n",
            rng.randbytes(rng.randrange(1, 2000)),
        ]
    )  # fmt: skip
    return Hostile(raw=raw)


def in_pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 4096):
        yield content[start : start + 4096]


def send(client: httpx.Client, request: Hostile) -> int:
    """The status of the answer; 0: the connection was closed without one. Raises AssertionError."""
    if request.raw is not None:
        return _send_raw(client.base_url, request.raw)
    content: Any = in_pieces(request.content) if request.chunked else request.content
    headers = {name: value.encode("utf-8") for name, value in request.headers.items()}
    try:
        response = client.request(request.method, request.path, headers=headers, content=content)
    except (httpx.RemoteProtocolError, httpx.WriteError):
        return 0
    assert response.status_code < 500, (request, response.text[:500])
    if response.status_code >= 400 and request.method != "HEAD":
        _check_error(request, response)
    return response.status_code


def _check_error(request: Hostile, response: httpx.Response) -> None:
    kind = response.headers.get("content-type", "")
    if kind.startswith("text/html") and request.path.startswith("/documents/"):
        return
    if kind.startswith("text/plain") and response.text.startswith("Invalid HTTP"):
        return  # by the HTTP library, before there was a request
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, request
    assert len(response.content) < 8_000, request


def _send_raw(url: httpx.URL, raw: bytes) -> int:
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65_536)
        except (ConnectionError, BrokenPipeError):
            return 0
    status = int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    assert status < 500, raw[:200]
    return status


def ask_all(
    url: str, count: int, seed: int, on_each: Callable[[int], None] = lambda status: None
) -> Counter[int]:
    """Send them one after the other; how many got which status."""
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=60) as client:
        for request in hostile_requests(count, seed):
            status = send(client, request)
            statuses[status] += 1
            on_each(status)
    return statuses


def main() -> int:
    url, count, seed = sys.argv[1:]
    for status, times in sorted(ask_all(url, int(count), int(seed)).items()):
        print(f"{status or 'closed'}: {times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
