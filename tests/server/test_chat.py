"""Chat completions through the unmodified OpenAI client, sync and async, and on the wire."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from chunkcache.protocol import AnswerReport

if TYPE_CHECKING:
    from collections.abc import Callable

USER = [{"role": "user", "content": "where is the cat"}]
DOCUMENTS = [
    {"id": "a b", "title": "Cats", "text": "the cat is on the mat"},
    {"title": "Dogs", "text": "the dog is out", "url": "http://dogs.test/1"},
]


def post(served: Any, **body: Any) -> httpx.Response:
    filled = {"model": "tiny-chat", "messages": USER, **body}
    return httpx.post(f"{served.url}/v1/chat/completions", json=filled)


def test_answer_with_citations_usage_and_report(served: Any) -> None:
    done = served.client().chat.completions.create(
        model="tiny-chat", messages=USER, extra_body={"documents": DOCUMENTS}
    )
    choice = done.choices[0]
    assert choice.message.content == "You asked: where is the cat — voilà "
    assert choice.finish_reason == "stop"
    found = [a.url_citation for a in choice.message.annotations]
    assert [c.url for c in found] == ["urn:chunkcache:a%20b#chars=0-21", "http://dogs.test/1"]
    assert [c.title for c in found] == ["Cats", "Dogs"]
    spans = {(c.start_index, c.end_index) for c in found}
    assert spans == {(0, len(choice.message.content))}
    assert done.usage.prompt_tokens_details.cached_tokens == 8
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.completion_tokens_details.reasoning_tokens == 0
    report = AnswerReport.model_validate(done.chunkcache)
    assert report.reused_tokens == 8 and report.citations[0].text == DOCUMENTS[0]["text"]


def test_cached_tokens_is_zero_and_not_absent_on_a_miss(served: Any) -> None:
    done = post(served).json()
    assert done["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert done["choices"][0]["message"]["annotations"] == []


def test_stream_is_the_same_answer(served: Any) -> None:
    client = served.client()
    whole = client.chat.completions.create(
        model="tiny-chat", messages=USER, extra_body={"documents": DOCUMENTS}
    )
    chunks = list(
        client.chat.completions.create(
            model="tiny-chat",
            messages=USER,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"documents": DOCUMENTS},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == (
        whole.choices[0].message.content
    )
    closing, last = chunks[-2:]
    assert closing.choices[0].finish_reason == "stop"
    wanted = [a.model_dump() for a in whole.choices[0].message.annotations]
    assert closing.choices[0].delta.annotations == wanted
    assert last.choices == [] and last.usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert last.chunkcache == whole.chunkcache
    assert chunks[0].chunkcache["citations"] == whole.chunkcache["citations"]
    assert {c.id for c in chunks} == {last.id}


def test_stream_on_the_wire(served: Any) -> None:
    response = post(served, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["prompt_tokens"] == 20  # unasked: clients guess it otherwise
    assert [bool(c.get("chunkcache", {}).get("rung")) for c in chunks] == (
        [False] * (len(chunks) - 1) + [True]
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_usage_so_far_in_every_chunk(served: Any) -> None:
    """As benchmarks ask for it."""
    wish = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False}
    chunks = list(
        served.client().chat.completions.create(
            model="tiny-chat", messages=USER, stream=True, stream_options=wish
        )
    )
    counted = [chunk.usage.completion_tokens for chunk in chunks]
    assert counted == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]  # opening, 8 words, closing, usage
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {20}
    assert chunks[-1].choices == [] and chunks[-2].choices[0].finish_reason == "stop"


LABELS = {"safety_identifier": "u", "prompt_cache_retention": "24h", "store": False,
          "prediction": {"type": "content", "content": "x"}, "verbosity": "medium",
          "reasoning_effort": "none", "web_search_options": {}}  # fmt: skip


def test_labels_and_hints_are_taken_without_a_word(served: Any) -> None:
    done = served.client().chat.completions.create(model="tiny-chat", messages=USER, **LABELS)
    assert done.chunkcache["notes"] == []
    assert served.service.requests[0] == type(served.service.requests[0])(
        messages=[{"role": "user", "content": "where is the cat"}]
    )


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_taken_and_changes_nothing_is_said(served: Any, stream: bool) -> None:
    message = {"role": "user", "content": "where is the cat", "name": "user"}
    answer = served.client().chat.completions.create(
        model="tiny-chat", messages=[message], store=True, reasoning_effort="low",
        verbosity="high", stream=stream,
    )  # fmt: skip
    notes = (list(answer)[-1] if stream else answer).chunkcache["notes"]
    assert [note.split()[0] for note in notes] == (
        ["messages[].name", "store", "reasoning_effort", "verbosity"]
    )


def test_async_client_streams_many_at_once(served: Any) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model="tiny-chat",
            messages=[{"role": "user", "content": f"number {number}"}],
            stream=True,
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
            return await asyncio.gather(*(ask(client, number) for number in range(6)))

    assert asyncio.run(main()) == [f"You asked: number {n} — voilà " for n in range(6)]


def test_request_reaches_the_service_in_its_own_terms(served: Any) -> None:
    served.client().chat.completions.create(
        model="tiny-chat",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]},
        ],
        max_completion_tokens=3,
        temperature=0.5,
        top_p=0.9,
        stop="END",
        seed=7,
        n=1,
        user="me",
        metadata={"run": "1"},
        store=False,
        prompt_cache_key="k",
        response_format={"type": "text"},
        extra_body={"top_k": 5, "chunkcache": {"mode": "exact", "budget": 0.5, "top_k": 2}},
    )  # fmt: skip
    (request,) = served.service.requests
    assert [m.content for m in request.messages] == ["be brief", "ab"]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.9)
    assert (sampling.stop, sampling.seed, sampling.top_k) == (("END",), 7, 5)
    assert (request.top_k, request.options.mode, request.options.budget) == (2, "exact", 0.5)
    assert (request.tenant, request.collection) == ("public", "default")


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("choice", "noted"),
    [({}, True), ({"tool_choice": "auto"}, True), ({"tool_choice": "none"}, False)],
)
def test_tools_that_need_not_be_called_are_taken_with_a_note(
    served: Any, choice: Any, noted: bool
) -> None:
    post(served, tools=[FUNCTION], **choice)
    (request,) = served.service.requests
    assert request.form is None
    assert [note.split(":")[0] for note in request.notes] == (["tools"] if noted else [])


def test_forms_and_sampling_reach_the_service_in_its_own_terms(served: Any) -> None:
    schema = {"type": "object", "properties": {"x": {"const": 1}}}
    asked = {"type": "json_schema", "json_schema": {"name": "n", "strict": False, "schema": schema}}
    post(
        served, response_format=asked, n=2, min_p=0.1, logit_bias={"5": -1.5}, logprobs=True,
        top_logprobs=20, repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=-0.3,
        tools=[FUNCTION],
    )  # fmt: skip
    post(served, tools=[FUNCTION], tool_choice="required")
    first, second = served.service.requests
    assert first.form.json_schema == schema
    assert first.sampling.model_dump(exclude_defaults=True) == {
        "n": 2, "min_p": 0.1, "logit_bias": {5: -1.5}, "logprobs": 20, "repetition_penalty": 1.1,
        "frequency_penalty": 0.2, "presence_penalty": -0.3,
    }  # fmt: skip
    (function,) = second.form.functions
    assert (function.name, function.parameters) == ("f", {"type": "object"})
    assert function.field == "tools.0.function.parameters"


def test_a_model_that_is_not_named_is_the_one_served(served: Any) -> None:
    done = httpx.post(f"{served.url}/v1/chat/completions", json={"messages": USER}).json()
    assert done["model"] == "tiny-chat"


def test_defaults_are_greedy(served: Any) -> None:
    post(served, temperature=None, top_p=None, stop=None, n=None, stream=None)
    sampling = served.service.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop) == (0, 1, 0, ())


def test_line_breaks_of_any_kind_do_not_break_a_stream_apart(served: Any) -> None:
    question = "a\u2028b\u2029c\x85d\x0be\x1cf"
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": question}]}
    documents = [{"title": question, "text": question}]
    sent = {**body, "stream": True, "documents": documents}
    text = httpx.post(f"{served.url}/v1/chat/completions", json=sent).text
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    opening = json.loads(lines[0].removeprefix("data: "))
    assert opening["chunkcache"]["citations"][0]["text"] == question


def test_an_answer_can_be_appended_to_the_conversation(served: Any) -> None:
    client = served.client()
    first = client.chat.completions.create(model="tiny-chat", messages=USER)
    history = [*USER, first.choices[0].message, {"role": "user", "content": "and the dog"}]
    client.chat.completions.create(model="tiny-chat", messages=history)
    assert [m.role for m in served.service.requests[1].messages] == ["user", "assistant", "user"]


def test_equal_limits_are_fine(served: Any) -> None:
    done = post(served, max_tokens=2, max_completion_tokens=2).json()
    assert done["choices"][0]["finish_reason"] == "length"
    assert done["usage"]["completion_tokens"] == 2


def test_overload_is_429_with_retry_after(serve_with: Callable[..., Any]) -> None:
    served = serve_with(queue_limit=1)
    with served.client().chat.completions.create(
        model="tiny-chat", messages=[{"role": "user", "content": "hold"}], stream=True
    ) as held:
        next(held)
        with pytest.raises(openai.RateLimitError) as caught:
            served.client().chat.completions.create(model="tiny-chat", messages=USER)
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.code == "queue_full"
        served.service.answers[0].go_on.set()
        assert [c.choices[0].finish_reason for c in held][-1] == "stop"


@pytest.mark.parametrize(
    ("word", "code"), [("breakdown", "internal_error"), ("refused", "invalid_value")]
)
def test_an_error_mid_stream_ends_the_stream(
    served: Any, logged: list[Any], word: str, code: str
) -> None:
    text = post(served, messages=[{"role": "user", "content": word}], stream=True).text
    assert "[DONE]" not in text and "secret" not in text
    *_, name, data = text.strip().split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))["error"]
    assert error["code"] == code
    if word == "breakdown":
        (incident,) = [entry["incident"] for entry in logged if entry["event"] == "incident"]
        assert incident in error["message"]
    with pytest.raises(openai.APIError):
        list(
            served.client().chat.completions.create(
                model="tiny-chat", messages=[{"role": "user", "content": word}], stream=True
            )
        )


def test_an_unexpected_error_is_an_incident_and_leaks_nothing(
    served: Any, logged: list[Any]
) -> None:
    response = post(served, messages=[{"role": "user", "content": "breakdown"}])
    assert response.status_code == 500 and "secret" not in response.text
    error = response.json()["error"]
    (entry,) = [e for e in logged if e["event"] == "incident"]
    assert entry["incident"] in error["message"] and error["type"] == "server_error"
    assert isinstance(entry["exc_info"], RuntimeError)
    assert response.headers["x-request-id"]
