"""Questions and answers against the real server, in each manner."""

from __future__ import annotations

from typing import Any

import pytest

from chunkcache.chunk import Rung
from chunkcache.errors import (
    ChunkCacheError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    ShuttingDown,
    Unauthorized,
    UnsupportedField,
)
from chunkcache.forms import FunctionCall
from chunkcache.protocol import AnswerDelta, AnswerStarted, GivenDocument, Message
from chunkcache.sdk import Answer, Usage

DOCUMENTS = [
    "the cat is on the mat",
    GivenDocument(id="d1", title="Dogs", text="the dog is out", url="http://dogs.test/1"),
    {"title": "Bats", "text": "the bat"},
]


def test_an_answer_is_whole_typed_and_cited(caller: Any) -> None:
    answer = caller("ask", "where is the cat", documents=DOCUMENTS)
    assert str(answer) == answer.text == "You asked: where is the cat — voilà "
    assert (answer.finish_reason, answer.model) == ("stop", "tiny-chat")
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage == Usage(prompt_tokens=20, completion_tokens=8, cached_tokens=8)
    assert (answer.report.rung, answer.report.reused_tokens) == (Rung.REPAIRED, 8)
    assert [c.text for c in answer.citations] == [
        "the cat is on the mat", "the dog is out", "the bat",
    ]  # fmt: skip
    assert answer.citations == tuple(answer.report.citations)
    assert answer.links == (
        "urn:chunkcache:d0#chars=0-21", "http://dogs.test/1", "urn:chunkcache:d2#chars=0-7",
    )  # fmt: skip


def test_a_stream_ends_with_the_same_answer(caller: Any) -> None:
    whole = caller("ask", "where is the cat", documents=DOCUMENTS)
    started, *deltas, last = caller.stream("where is the cat", documents=DOCUMENTS)
    assert started == AnswerStarted(citations=list(whole.citations))
    assert {type(delta) for delta in deltas} == {AnswerDelta} and len(deltas) == 8
    assert "".join(delta.text for delta in deltas) == whole.text
    assert isinstance(last, Answer)
    for name in ("model", "text", "finish_reason", "citations", "links", "report", "usage"):
        assert getattr(last, name) == getattr(whole, name), name


def test_every_wish_reaches_the_service(served: Any, caller: Any) -> None:
    store = served.service.create_collection("pets", tenant="public")
    caller(
        "ask", "hello", top_k=3, vector_store_id=store.id, mode="exact", policy="first_k",
        budget=0.5, model="tiny-chat", temperature=0.7, top_p=0.9, max_tokens=5,
        stop=("A", "B"), seed=7, documents=None,
    )  # fmt: skip
    (request,) = served.service.requests
    assert (request.top_k, request.collection) == (3, store.id)
    options = request.options
    assert (options.mode, options.policy, options.budget) == ("exact", "first_k", 0.5)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.7, 0.9, 5)
    assert (sampling.stop, sampling.seed) == (("A", "B"), 7)


def test_a_drift_target_reaches_the_service(served: Any, caller: Any) -> None:
    caller("ask", "hello", exactness={"drift": 0.02})
    (request,) = served.service.requests
    assert request.options.exactness is not None and request.options.exactness.drift == 0.02


def test_drawing_and_form_reach_the_service(served: Any, caller: Any) -> None:
    caller(
        "ask", "hello", min_p=0.1, frequency_penalty=0.5, presence_penalty=-0.5, min_tokens=0,
        repetition_penalty=1.5, logit_bias={3: -1.0}, response_format={"type": "json_object"},
    )  # fmt: skip
    (request,) = served.service.requests
    assert request.sampling.model_dump(exclude_defaults=True) == {
        "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "repetition_penalty": 1.5, "logit_bias": {3: -1.0},
    }  # fmt: skip
    assert request.form.json_schema == {"type": "object"}


def test_turns_with_calls_and_results_reach_the_service(served: Any, caller: Any) -> None:
    call = FunctionCall(id="call_1", name="f", arguments="{}")
    talk = [
        Message(role="user", content="rain?"),
        Message(role="assistant", content="", calls=(call,)),
        Message(role="tool", content="none", call_id="call_1"),
    ]
    caller("ask", talk)
    assert served.service.requests[0].messages == talk


def test_zero_is_a_wish_and_none_is_not(served: Any, caller: Any) -> None:
    caller("ask", "hello", top_k=0, budget=0.0, seed=0, temperature=None, stop=None)
    (request,) = served.service.requests
    assert (request.top_k, request.options.budget, request.sampling.seed) == (0, 0.0, 0)
    assert request.sampling.stop == ()


def test_one_stop_text_is_one(served: Any, caller: Any) -> None:
    caller("ask", "hello", stop="END")
    assert served.service.requests[0].sampling.stop == ("END",)


def test_a_conversation_is_passed_on(served: Any, caller: Any) -> None:
    turns = [
        Message(role="system", content="be brief"),
        {"role": "user", "content": "where is the cat"},
        {"role": "assistant", "content": "out"},
        {"role": "user", "content": "and the dog"},
    ]
    assert caller("ask", turns).text.startswith("You asked: and the dog")
    assert [m.content for m in served.service.requests[0].messages] == [
        "be brief", "where is the cat", "out", "and the dog",
    ]  # fmt: skip


@pytest.mark.parametrize("question", ["a\u2028b\x85c\x0bd\r\n\te", "猫は🐈 où?", "data: [DONE]"])
def test_any_text_survives_both_ways(caller: Any, question: str) -> None:
    documents = [question]
    answer = caller("ask", question, documents=documents)
    *_, streamed = caller.stream(question, documents=documents)
    assert answer.citations[0].text == streamed.citations[0].text == question
    assert answer.text == streamed.text


def test_an_empty_list_of_documents_means_no_retrieval(served: Any, caller: Any) -> None:
    served.service.ingest_bytes("a.txt", b"the cat", tenant="public", collection="default")
    assert len(caller("ask", "the cat").citations) == 1
    assert caller("ask", "the cat", documents=[]).citations == ()


@pytest.mark.parametrize(
    ("question", "wishes", "error", "param"),
    [
        ("hello", {"vector_store_id": "vs_none"}, NotFound, "vector_store_id"),
        ("hello", {"model": "gpt-4o"}, NotFound, "model"),
        ("hello", {"budget": 2.0}, InvalidRequest, "chunkcache.budget"),
        ("hello", {"max_tokens": 0}, InvalidRequest, "max_tokens"),
        ("hello", {"exactness": {"drift": -1.0}}, InvalidRequest, "chunkcache.exactness.drift"),
        ("hello", {"documents": [{"text": "t", "body": "b"}]}, UnsupportedField,
         "documents.0.body"),
        ([{"role": "assistant", "content": "x"}], {}, InvalidRequest, None),
    ],
)  # fmt: skip
def test_the_server_s_error_comes_back_as_itself(
    caller: Any, question: Any, wishes: Any, error: type[ChunkCacheError], param: str | None
) -> None:
    for ask in (
        lambda: caller("ask", question, **wishes),
        lambda: list(caller.stream(question, **wishes)),
    ):
        with pytest.raises(error) as caught:
            ask()
        assert type(caught.value) is error
        assert caught.value.param == param
        assert caught.value.status == error.status


@pytest.mark.parametrize(
    "raised",
    [
        PromptTooLong("messages: too long", param="messages"),
        ShuttingDown("draining"),
        ChunkCacheError("odd"),
    ],
)
def test_errors_of_the_service_keep_class_and_message(
    served: Any, hasty: Any, monkeypatch: pytest.MonkeyPatch, raised: ChunkCacheError
) -> None:
    def fail(_request: Any, **_: Any) -> Any:
        raise raised

    monkeypatch.setattr(served.service, "start", fail)
    with pytest.raises(type(raised)) as caught:
        hasty("ask", "hello")
    assert type(caught.value) is type(raised)
    assert (caught.value.message, caught.value.param, caught.value.code) == (
        raised.message, raised.param, raised.code,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "error"), [("breakdown", ChunkCacheError), ("refused", InvalidRequest)]
)
def test_an_error_half_way_is_raised_after_the_pieces(
    caller: Any, word: str, error: type[ChunkCacheError]
) -> None:
    events = []
    with pytest.raises(error) as caught:
        for event in caller.stream(word):
            events.append(event)
    assert type(caught.value) is error
    assert [type(event) for event in events] == [AnswerStarted, AnswerDelta]


def test_wrong_wishes_are_wrong_keywords(caller: Any) -> None:
    with pytest.raises(TypeError, match="there is no wish 'temprature'"):
        caller("ask", "hello", temprature=0.5)
    with pytest.raises(TypeError, match="temprature"):
        list(caller.stream("hello", temprature=0.5))


@pytest.mark.parametrize("wishes", [{"budget": float("nan")}, {"documents": ["\ud800"]}])
def test_what_json_cannot_say_is_an_invalid_request(caller: Any, wishes: Any) -> None:
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        caller("ask", "hello", **wishes)


def test_leaving_a_stream_cancels_the_answer(served: Any, hasty: Any) -> None:
    events = hasty.stream("hold on")
    assert isinstance(next(events), AnswerStarted)
    answer = served.service.wait_for_answers(1)
    assert not answer.cancelled.is_set()
    events.close()
    assert answer.cancelled.wait(10) and answer.ended.wait(10)


def test_pieces_arrive_as_they_are_made(served: Any, hasty: Any) -> None:
    events = hasty.stream("hold on")
    assert [type(next(events)) for _ in range(2)] == [AnswerStarted, AnswerDelta]
    served.service.answers[0].go_on.set()
    assert isinstance(list(events)[-1], Answer)


def test_overload_is_raised_at_once_when_the_wait_would_be_too_long(
    serve_with: Any, open_caller: Any
) -> None:
    served = serve_with(queue_limit=1)
    caller = open_caller("sync over a socket", base_url=served.url, max_retry_wait_s=6.9)
    held = caller.stream("hold on")
    next(held)
    with pytest.raises(Overloaded) as caught:
        caller("ask", "hello")
    assert caught.value.retry_after_s == 7
    held.close()


def test_api_keys_are_sent_and_their_lack_is_an_error(
    serve_with: Any, open_caller: Any, tmp_path: Any
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-a acme\n")
    keys.chmod(0o600)
    served = serve_with(api_keys_file=keys)
    manner = "sync over a socket"
    open_caller(manner, base_url=f"{served.url}/v1/", api_key=" sk-a ")("ask", "hello")
    assert served.service.requests[0].tenant == "acme"
    for key in (None, "sk-b"):
        with pytest.raises(Unauthorized):
            open_caller(manner, base_url=served.url, api_key=key)("ask", "hello")
