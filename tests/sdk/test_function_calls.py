"""Answers that are calls of functions, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from chunkcache.errors import InvalidResponse
from chunkcache.forms import CallForm, FunctionCall
from chunkcache.protocol import AnswerDelta

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


def test_tools_reach_the_service(served: Any, caller: Any) -> None:
    caller("ask", "add", tools=(TOOL,), tool_choice="required", parallel_tool_calls=False)
    (request,) = served.service.requests
    assert isinstance(request.form, CallForm)
    assert [function.name for function in request.form.functions] == ["add"]


def test_a_call_is_part_of_the_answer(mock: Any, completion: dict[str, Any]) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    completion["choices"][0] |= {"message": message, "finish_reason": "tool_calls"}
    answer = mock(lambda request: httpx.Response(200, json=completion))("ask", "add")
    assert answer.calls == (FunctionCall(id="call_1", name="add", arguments='{"a":1}'),)
    assert (answer.text, answer.finish_reason, answer.links) == ("", "tool_calls", ())


def streamed(wire: bytes, *pieces: dict[str, Any]) -> bytes:
    """The recorded stream, with pieces of a call instead of its text."""
    events = wire.decode().split("\n\n")
    opening, _, _, closing, *rest = events
    closing = closing.replace('"stop"', '"tool_calls"')
    chunk = json.loads(events[1].removeprefix("data: "))
    middle = []
    for piece in pieces:
        chunk["choices"][0]["delta"] = {"tool_calls": [piece]}
        middle.append(f"data: {json.dumps(chunk)}")
    return "\n\n".join([opening, *middle, closing, *rest]).encode()


def test_a_streamed_call_comes_in_pieces_and_whole(mock: Any, wire: bytes) -> None:
    first = {"index": 0, **CALL, "function": {"name": "add", "arguments": '{"a"'}}
    second = {"index": 0, "function": {"arguments": ":1}"}}
    content = streamed(wire, first, second)
    caller = mock(lambda request: httpx.Response(200, content=content))
    _, *deltas, answer = caller.stream("add")
    assert deltas == [
        AnswerDelta(text='{"a"', call="add", call_id="call_1"),
        AnswerDelta(text=":1}", call="add", call_id="call_1"),
    ]
    assert answer.calls == (FunctionCall(id="call_1", name="add", arguments='{"a":1}'),)
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")


def test_a_call_without_its_beginning_is_no_call(mock: Any, wire: bytes) -> None:
    content = streamed(wire, {"index": 1, "function": {"arguments": "{}"}})
    caller = mock(lambda request: httpx.Response(200, content=content))
    with pytest.raises(InvalidResponse):
        list(caller.stream("add"))
