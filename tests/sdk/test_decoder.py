"""The stream decoder: bytes cut anywhere, by the rules of server-sent events."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chunkcache.errors import ChunkCacheError, InvalidResponse, ServerUnreachable
from chunkcache.protocol import AnswerDelta, AnswerStarted
from chunkcache.sdk.decoder import AnswerDecoder
from chunkcache.sdk.results import Answer, answer_of


def decoded(*pieces: bytes) -> list[Any]:
    decoder = AnswerDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    decoder.close()
    return events


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(0, 3000), max_size=30))
def test_it_does_not_matter_where_the_bytes_are_cut(wire: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(wire), *(cut % len(wire) for cut in cuts)})
    pieces = [wire[a:b] for a, b in itertools.pairwise(edges)]
    assert decoded(*pieces) == decoded(wire)


def test_byte_by_byte(wire: bytes) -> None:
    assert decoded(*(wire[i : i + 1] for i in range(len(wire)))) == decoded(wire)


def test_the_answer_is_the_one_that_comes_whole(wire: bytes, completion: dict[str, Any]) -> None:
    started, first, second, answer = decoded(wire)
    assert isinstance(started, AnswerStarted)
    assert (first, second) == (AnswerDelta(text="Hi"), AnswerDelta(text=" there"))
    assert answer == answer_of(completion)


def test_windows_line_ends_comments_and_unknown_fields_change_nothing(wire: bytes) -> None:
    noisy = wire.replace(b"\n", b"\r\n").replace(b"data: {", b": ping\r\nid: 7\r\ndata:{")
    assert decoded(noisy) == decoded(wire)
    assert decoded(b"\n\n: hello\n\n" + wire) == decoded(wire)


def test_data_over_several_lines_is_one_event(wire: bytes) -> None:
    split = wire.replace(b'data: {"id"', b'data: {\ndata: "id"')
    assert split != wire and decoded(split) == decoded(wire)


def test_what_follows_the_end_is_ignored(wire: bytes) -> None:
    assert decoded(wire + b"data: nonsense\n\n") == decoded(wire)


def test_every_true_prefix_is_unreachable_and_never_an_answer(wire: bytes) -> None:
    for length in range(0, len(wire) - 1, 7):
        decoder = AnswerDecoder()
        events = list(decoder.feed(wire[:length]))
        assert not any(isinstance(event, Answer) for event in events)
        with pytest.raises(ServerUnreachable):
            decoder.close()


def test_an_error_event_is_raised_after_what_came_before(wire: bytes) -> None:
    begun = wire[: wire.index(b"\n\n") + 2]
    error = {"error": {"message": "m", "type": "x", "param": None, "code": "cancelled"}}
    for name in (b"event: error\n", b""):
        decoder = AnswerDecoder()
        events = []
        with pytest.raises(ChunkCacheError, match="m") as caught:
            for event in decoder.feed(
                begun + name + b"data: " + json.dumps(error).encode() + b"\n\n"
            ):
                events.append(event)
        assert caught.value.code == "cancelled" and len(events) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: 7\n\n",
        b"data: {}\n\n",
        b"data: \xff\n\n",
        b"data: [DONE]\n\n",
        b"event: error\ndata: {}\n\n",
        b'event: error\ndata: {"error": "text"}\n\n',
        b'data: {"id": "x", "model": "gpt", "choices": []}\n\n',
    ],
)
def test_another_kind_of_stream_is_an_invalid_response(data: bytes) -> None:
    with pytest.raises(InvalidResponse):
        decoded(data)


def test_an_end_without_usage_or_report_is_an_invalid_response(wire: bytes) -> None:
    events = wire.split(b"\n\n")
    without = b"\n\n".join(event for event in events if b'"usage"' not in event)
    assert without != wire
    with pytest.raises(InvalidResponse):
        decoded(without)


def test_fields_of_a_newer_server_are_left_alone(wire: bytes, completion: dict[str, Any]) -> None:
    newer = wire.replace(b'"cost_ratio"', b'"invented": [1], "cost_ratio"')
    assert newer != wire
    assert decoded(newer)[-1] == answer_of(completion)
