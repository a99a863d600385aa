"""Servers that refuse, break off, or talk nonsense; each is a function here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from chunkcache import errors
from chunkcache.errors import (
    ChunkCacheError,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    RequestTooLarge,
    ServerUnreachable,
    Unauthorized,
)
from chunkcache.protocol import AnswerDelta, AnswerStarted

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = httpx.Response(200, json={"version": "9"})


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"error": {"message": "no", "type": "x", "param": None, "code": code}}
    return httpx.Response(status, json=body, headers=headers)


class Script:
    """Answers requests with a list of responses, or raises what is in it."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(
            answer.status_code, headers=answer.headers, content=answer.content
        )  # fresh, for either kind of client


NOW = {"retry-after": "0"}


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "shutting_down")])
@pytest.mark.parametrize("method", ["version", "ask", "stream"])
def test_a_refusal_is_tried_again_when_the_server_says(
    mock: Callable[..., Any], completion: dict[str, Any], wire: bytes,
    status: int, code: str, method: str,
) -> None:  # fmt: skip
    good = {"version": VERSION, "ask": httpx.Response(200, json=completion),
            "stream": httpx.Response(200, content=wire)}[method]  # fmt: skip
    script = Script(refusal(status, code, **NOW), refusal(status, code, **NOW), good)
    caller = mock(script)
    if method == "stream":
        assert list(caller.stream("hello"))[-1].text == "Hi there"
    else:
        assert str(caller(method, *["hello"][: method == "ask"])) in ("9", "Hi there")
    assert len(script.requests) == 3
    assert len({request.content for request in script.requests}) == 1


def test_tries_are_counted(mock: Callable[..., Any]) -> None:
    for retries in (0, 1, 3):
        script = Script(*[refusal(429, "queue_full", **NOW) for _ in range(5)])
        with pytest.raises(Overloaded):
            mock(script, retries=retries)("version")
        assert len(script.requests) == retries + 1


def test_no_connection_is_tried_again_even_for_answers(
    mock: Callable[..., Any], completion: dict[str, Any]
) -> None:
    lost = httpx.ConnectError("connection refused")
    script = Script(lost, httpx.Response(200, json=completion))
    assert mock(script, max_retry_wait_s=0.0)("ask", "hello").text == "Hi there"
    script = Script(lost, lost, lost)
    with pytest.raises(ServerUnreachable, match="connection refused") as caught:
        mock(script, max_retry_wait_s=0.0)("ask", "hello")
    assert caught.value.__cause__ is lost and len(script.requests) == 3


BROKEN = [
    httpx.ReadError("reset"),
    httpx.ReadTimeout("silence"),
    httpx.WriteError("pipe"),
    httpx.RemoteProtocolError("half a response"),
    httpx.Response(502, content=b"<html>bad gateway"),
    httpx.Response(504, content=b"<html>timeout"),
]


def test_a_store_whose_deletion_was_not_heard_of_is_deleted_all_the_same(
    mock: Callable[..., Any],
) -> None:
    listing = httpx.Response(200, json={"data": [], "has_more": False})
    gone = refusal(404, "not_found")
    script = Script(listing, httpx.ReadError("reset"), gone)
    assert mock(script, max_retry_wait_s=0.0)("delete_vector_store", "vs-1") is True
    assert [request.method for request in script.requests] == ["GET", "DELETE", "DELETE"]
    assert mock(Script(gone))("delete_vector_store", "vs-1") is False


@pytest.mark.parametrize("fault", BROKEN, ids=str)
def test_a_broken_connection_is_tried_again_only_where_twice_is_as_good_as_once(
    mock: Callable[..., Any], fault: Any
) -> None:
    script = Script(fault, VERSION)
    assert mock(script, max_retry_wait_s=0.0)("version") == "9"
    for method, argument in (("ask", "hello"), ("ingest", ("a.txt", b"x"))):
        listing = httpx.Response(200, json={"data": [], "has_more": False})
        before = [listing] if method == "ingest" else []
        script = Script(*before, fault)
        with pytest.raises(ServerUnreachable):
            mock(script, max_retry_wait_s=0.0)(method, argument)
        assert script.answers == []


def test_an_upload_that_was_refused_is_sent_whole_again(mock: Callable[..., Any]) -> None:
    script = Script(
        httpx.Response(200, json={"data": [], "has_more": False}),
        refusal(429, "queue_full", **NOW),
        refusal(413, "request_too_large"),
    )
    report = mock(script)("ingest", ("a.txt", b"the bytes"))
    assert (report.skipped, report.problems) == (1, ["a.txt: no"])
    first, second = script.requests[1:]
    assert b"the bytes" in first.content and b"the bytes" in second.content


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (refusal(400, "invalid_value"), InvalidRequest),
        (refusal(400, "context_length_exceeded"), errors.PromptTooLong),
        (refusal(400, "unsupported_parameter"), errors.UnsupportedField),
        (refusal(400, "a_new_code"), InvalidRequest),
        (refusal(401, "invalid_api_key"), Unauthorized),
        (refusal(404, "not_found"), NotFound),
        (refusal(404, "model_not_found"), NotFound),
        (refusal(500, "model_not_found"), errors.ModelNotFound),
        (refusal(413, "request_too_large"), RequestTooLarge),
        (refusal(500, "internal_error"), ChunkCacheError),
        (refusal(500, "store_error"), errors.StoreError),
        (refusal(501, "gate_failed"), errors.GateFailed),
        (refusal(418, "teapot"), ChunkCacheError),
        (httpx.Response(500, content=b"<html>"), ChunkCacheError),
        (httpx.Response(404, json={"detail": "Not Found"}), NotFound),
        (httpx.Response(302, headers={"location": "/login"}), InvalidResponse),
        (httpx.Response(400, json={"error": "text"}), InvalidRequest),
        (httpx.Response(422, json=[1]), InvalidRequest),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value.status_code),
)
def test_a_final_error_is_raised_at_once_as_its_class(
    mock: Callable[..., Any], response: httpx.Response, error: type[ChunkCacheError]
) -> None:
    script = Script(response)
    with pytest.raises(ChunkCacheError) as caught:
        mock(script)("version")
    assert type(caught.value) is error
    assert caught.value.status == response.status_code
    if response.headers.get("content-type") == "application/json" and "code" in response.text:
        assert caught.value.code == response.json()["error"]["code"]


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"\xff", b"[]", b"null", b"{}", b'{"version"', b'{"data": 1}'],
)
@pytest.mark.parametrize("call", ["version", "models", "documents", "search", "embed", "ask"])
def test_a_success_that_cannot_be_read_is_an_invalid_response(
    mock: Callable[..., Any], content: bytes, call: str
) -> None:
    arguments = {"search": ["q"], "embed": [["t"]], "ask": ["q"]}.get(call, [])
    with pytest.raises(InvalidResponse):
        mock(Script(httpx.Response(200, content=content)))(call, *arguments)


def test_health_may_say_that_it_is_draining(mock: Callable[..., Any]) -> None:
    draining = httpx.Response(503, json={"status": "draining"})
    assert mock(Script(draining))("health") == {"status": "draining"}


def test_vectors_must_be_as_many_as_texts(mock: Callable[..., Any]) -> None:
    one = {"data": [{"embedding": "AACAPw=="}]}
    assert mock(Script(httpx.Response(200, json=one)))("embed", ["a"]) == [[1.0]]
    with pytest.raises(InvalidResponse, match="1 vectors for 2 texts"):
        mock(Script(httpx.Response(200, json=one)))("embed", ["a", "b"])


def test_a_stream_that_ends_politely_but_too_early_is_no_answer(
    mock: Callable[..., Any], wire: bytes
) -> None:
    for cut in (b"", wire[: wire.index(b"data: [DONE]")]):
        events = []
        with pytest.raises(ServerUnreachable, match="ended before the answer"):
            for event in mock(Script(httpx.Response(200, content=cut))).stream("hello"):
                events.append(type(event))
        assert events == ([AnswerStarted, AnswerDelta, AnswerDelta] if cut else [])
