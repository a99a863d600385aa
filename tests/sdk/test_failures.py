"""Failures as errors, and the rule of trying again, by themselves."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import httpx
import pytest

from chunkcache import errors
from chunkcache.errors import (
    ChunkCacheError,
    InvalidRequest,
    Overloaded,
    ServerUnreachable,
    ShuttingDown,
)
from chunkcache.sdk.failures import Failure, RetryRule, error_of_object


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"error": {"message": "no", "type": "x", "param": None, "code": code}}
    return httpx.Response(status, json=body, headers=headers)


def failure(kind: Any, retry_after_s: float | None = None) -> Failure:
    return Failure(ServerUnreachable("x"), kind, retry_after_s)


def test_the_rule_waits_as_long_as_asked_and_never_longer_than_allowed() -> None:
    rule = RetryRule(retries=3, max_wait_s=10.0)
    assert rule.wait_s(failure("refused", 10.0), 0, repeatable=False) == 10.0
    assert rule.wait_s(failure("refused", 10.1), 0, repeatable=True) is None
    assert rule.wait_s(failure("refused", 0.0), 2, repeatable=True) == 0.0
    assert rule.wait_s(failure("refused", 0.0), 3, repeatable=True) is None
    assert rule.wait_s(failure("unknown", 0.0), 0, repeatable=False) is None
    assert rule.wait_s(failure("unknown", 0.0), 0, repeatable=True) == 0.0
    assert rule.wait_s(failure("final", 0.0), 0, repeatable=True) is None


def test_without_a_hint_waits_grow_to_the_limit() -> None:
    rule = RetryRule(retries=100, max_wait_s=3.0)
    for attempt, longest_s in enumerate([0.5, 1.0, 2.0, 3.0, 3.0]):
        for _ in range(20):
            wait_s = rule.wait_s(failure("refused"), attempt, repeatable=True)
            assert wait_s is not None and longest_s / 2 <= wait_s <= longest_s


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [("7", 7, 7), ("0", 0, 0), ("soon", None, None), ("-1", None, None), ("1.5", None, None)],
)
def test_retry_after_in_seconds(header: str, least_s: Any, most_s: Any) -> None:
    found = Failure.of_response(refusal(429, "queue_full", **{"retry-after": header}))
    assert found.retry_after_s == least_s == most_s
    assert isinstance(found.error, Overloaded)
    assert found.error.retry_after_s == (1 if least_s is None else least_s)


def test_retry_after_as_a_date() -> None:
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    found = Failure.of_response(refusal(503, "shutting_down", **{"retry-after": later}))
    assert found.retry_after_s is not None and 3000 < found.retry_after_s <= 3600
    past = email.utils.formatdate(0, usegmt=True)
    again = Failure.of_response(refusal(503, "shutting_down", **{"retry-after": past}))
    assert again.retry_after_s == 0.0


def test_every_error_of_the_tree_comes_back_as_itself() -> None:
    classes = [
        cls for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, ChunkCacheError)
    ]  # fmt: skip
    assert len(classes) > 15
    for cls in classes:
        sent = {"message": "m", "type": "t", "param": "p", "code": cls.code}
        for status in (cls.status, None):
            made = error_of_object(sent, status)
            assert type(made) is cls, (cls, status)
            assert (made.message, made.param, made.code) == ("m", "p", cls.code)


def test_an_error_object_with_nothing_in_it_is_still_an_error() -> None:
    assert type(error_of_object({})) is ChunkCacheError
    assert type(error_of_object({"type": "invalid_request_error"})) is InvalidRequest
    assert type(error_of_object({"code": 7}, 503)) is ShuttingDown
