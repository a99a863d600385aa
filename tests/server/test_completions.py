"""Text completions through the unmodified OpenAI client, as LlamaIndex and benchmarks ask them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

PROMPT = "where is the cat"
DOCUMENTS = {"documents": [{"id": "a", "title": "Cats", "text": "the cat is on the mat"}]}


def post(served: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json={"prompt": PROMPT, **body})


def test_a_prompt_is_a_question_of_its_own(served: Any) -> None:
    done = served.client().completions.create(
        model="tiny-chat", prompt=PROMPT, temperature=0.1, max_tokens=4, stop=["\n"], n=1,
        extra_body=DOCUMENTS,
    )  # fmt: skip
    assert (done.object, done.id[:5], done.model) == ("text_completion", "cmpl-", "tiny-chat")
    (choice,) = done.choices
    assert (choice.text, choice.finish_reason) == ("You asked: where is ", "length")
    assert (done.usage.completion_tokens, done.usage.prompt_tokens_details.cached_tokens) == (4, 8)
    assert done.chunkcache["citations"][0]["title"] == "Cats"
    (request,) = served.service.requests
    assert [(m.role, m.content) for m in request.messages] == [("user", PROMPT)]
    assert (request.layout, request.top_k, request.sampling.stop) == ("chat", None, ("\n",))


def test_under_the_plain_id_the_prompt_is_all_the_model_reads(served: Any) -> None:
    client = served.client()
    client.completions.create(model="tiny-chat:plain", prompt=PROMPT)
    client.completions.create(model="tiny-chat:plain", prompt=PROMPT, extra_body=DOCUMENTS)
    raw, given = served.service.requests
    assert (raw.layout, raw.top_k) == ("raw", 0)
    assert given.layout == "plain"  # documents need a place to stand in


def test_a_list_of_one_prompt_is_a_prompt(served: Any) -> None:
    assert post(served, prompt=[PROMPT]).json()["choices"] == post(served).json()["choices"]


def test_a_stream_is_the_same_answer(served: Any) -> None:
    client = served.client()
    whole = client.completions.create(model="tiny-chat", prompt=PROMPT, extra_body=DOCUMENTS)
    chunks = list(
        client.completions.create(
            model="tiny-chat", prompt=PROMPT, stream=True, extra_body=DOCUMENTS,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert {(c.id, c.object) for c in chunks} == {(chunks[0].id, "text_completion")}
    assert chunks[0].chunkcache["citations"] == whole.chunkcache["citations"]
    assert [c.choices[0].finish_reason for c in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert chunks[-1].chunkcache == whole.chunkcache


def test_the_stream_on_the_wire_ends_with_usage_unasked(served: Any) -> None:
    *events, done, _ = post(served, stream=True).text.split("\n\n")
    assert done == "data: [DONE]"
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["usage"]["total_tokens"] == 28 and last["choices"][0]["finish_reason"] == "stop"


def test_values_that_ask_for_nothing_are_taken(served: Any) -> None:
    neutral = {
        "echo": False, "suffix": None, "best_of": 1, "logprobs": None, "n": 1, "user": "me",
        "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {},
    }  # fmt: skip
    assert post(served, **neutral).status_code == post(served).status_code == 200
    assert served.service.requests[0] == served.service.requests[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"echo": True}, "echo"), ({"suffix": "the end"}, "suffix"), ({"best_of": 2}, "best_of"),
     ({"logprobs": 1}, "logprobs"), ({"messages": []}, "messages"),
     ({"max_completion_tokens": 3}, "max_completion_tokens")],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    served: Any, fields: dict[str, Any], param: str
) -> None:
    response = post(served, **fields)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert served.service.requests == []


@pytest.mark.parametrize("prompt", [[15339, 1917], [[15339, 1917]], [[1], [2]]])
def test_token_ids_are_refused_with_what_to_send_instead(served: Any, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="tokenized_requests=False") as caught:
        served.client().completions.create(model="tiny-chat", prompt=prompt)
    assert (caught.value.param, caught.value.code) == ("prompt", "unsupported_parameter")


@pytest.mark.parametrize("prompt", ["", [], ["a", "b"], [""], None, 3])
def test_other_prompts_are_wrong_values(served: Any, prompt: Any) -> None:
    response = post(served, prompt=prompt)
    assert response.status_code == 400
    assert "prompt" in response.json()["error"]["message"]
    assert served.service.requests == []


def test_the_embedder_completes_nothing(served: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="embeds text and does not chat"):
        served.client().completions.create(model="tiny-embed", prompt=PROMPT)
