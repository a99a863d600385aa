"""Bodies full of mistakes: few errors are worded, the event loop stays free, memory is bounded."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute

from chunkcache.server import bodies
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.routes import ROUTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAT = "/v1/chat/completions"
MANY = 3_000
MOST_ERRORS = 2_000
USER = {"role": "user", "content": "hello"}
JSON_ROUTES = [
    route
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    and route.body_field is not None
    and not isinstance(route.body_field.field_info, Form)
]


def test_every_route_with_a_json_body_is_bounded() -> None:
    assert JSON_ROUTES
    assert [route.path for route in JSON_ROUTES if not isinstance(route, BoundedRoute)] == []


def hostile_values() -> Iterator[Any]:
    yield [0] * MANY
    yield [[]] * MANY
    yield [{}] * MANY
    yield [{"role": 1, "content": 2, "x": 3, "type": 4, "text": 5}] * 660
    yield {str(number): number for number in range(1_000)}
    yield [{str(number): number for number in range(900)}] * 4
    yield {"a": [0] * MANY}


@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: f"{route.path}")
def test_however_many_mistakes_few_errors_are_worded(route: APIRoute) -> None:
    field = route.body_field
    assert field is not None
    model: Any = field.field_info.annotation
    for value in hostile_values():
        for body in [value, *({name: value} for name in model.model_fields)]:
            with pytest.raises(RequestValidationError) as caught:
                bodies._validate(field, json.dumps(body).encode())
            assert len(caught.value.errors()) <= MOST_ERRORS


def test_a_body_of_four_megabytes_of_wrong_messages_is_told_in_a_line(http: httpx.Client) -> None:
    body = b'{"messages": [' + b"1," * 2_000_000 + b"1]}"
    response = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_value")
    assert "more than 50000 values" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER] * 5000}, "messages"),
        ({"messages": [USER], "documents": [{"text": "x"}] * 2000}, "documents"),
        ({"messages": [{**USER, "annotations": [{}] * 5000}]}, "messages.0.annotations"),
    ],
)
def test_a_list_too_long_is_named_with_its_limit(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    response = http.post(CHAT, json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].startswith(param) and "at most" in error["message"]
    assert len(error["message"]) < 400


def test_names_and_values_in_errors_are_cut(http: httpx.Client) -> None:
    for body in ({"x" * 1_000_000: 1}, {"messages": "y" * 1_000_000}, {"model": ["z" * 999_999]}):
        response = http.post(CHAT, json=body)
        assert response.status_code == 400
        assert len(response.content) < 2_000


def test_a_path_in_an_error_is_cut(http: httpx.Client) -> None:
    response = http.get("/v1/" + "x" * 20_000)
    assert response.status_code == 404
    assert len(response.content) < 2_000


def test_a_big_body_is_worked_on_beside_the_event_loop(
    served: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on, true = threading.Event(), threading.Event(), bodies._validate

    def held(field: Any, data: bytes) -> Any:
        entered.set()
        assert go_on.wait(20)
        return true(field, data)

    monkeypatch.setattr(bodies, "_validate", held)
    statuses: list[int] = []
    body = {"messages": [{"role": "user", "content": "word " * 50_000}]}

    def post() -> None:
        statuses.append(httpx.post(f"{served.url}{CHAT}", json=body, timeout=30).status_code)

    poster = threading.Thread(target=post)
    poster.start()
    assert entered.wait(10)
    assert http.get("/health").status_code == 200
    assert statuses == []
    go_on.set()
    poster.join(30)
    assert statuses == [200]


def connect(url: str) -> socket.socket:
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port), timeout=20)


def head(size_bytes: int | None) -> bytes:
    length = "transfer-encoding: chunked" if size_bytes is None else f"content-length: {size_bytes}"
    return (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_comes_too_slowly_is_given_up(
    serve_with: Callable[..., Any], chunked: bool
) -> None:
    served = serve_with(body_timeout_s=0.2)
    with connect(served.url) as slow:
        slow.sendall(head(None if chunked else 1000) + (b"1\r\n{\r\n" if chunked else b"{"))
        answer = slow.recv(4000)
        while more := slow.recv(4000):  # and then it is closed
            answer += more
    assert answer.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in answer
    assert b"server.body_timeout_s" in answer


def test_a_body_sent_byte_by_byte_is_taken(served: Any) -> None:
    body = json.dumps({"messages": [USER]}).encode()
    with connect(served.url) as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        slow.sendall(head(len(body)))
        for number in range(len(body)):
            slow.sendall(body[number : number + 1])
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")


def test_bodies_together_are_bounded_and_let_go(serve_with: Callable[..., Any]) -> None:
    served = serve_with(max_bodies_bytes=4096)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()

    def post() -> httpx.Response:
        headers = {"content-type": "application/json"}
        return httpx.post(f"{served.url}{CHAT}", content=body, headers=headers)

    for _ in range(5):  # one after the other, they do not add up
        assert post().status_code == 200
    with connect(served.url) as unfinished:
        unfinished.sendall(head(4000) + b" " * 3500)
        while (response := post()).status_code == 200:  # until that has arrived
            continue
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    assert "server.max_bodies_bytes" in response.json()["error"]["message"]
    while post().status_code == 429:  # until it has been seen to be gone
        continue
