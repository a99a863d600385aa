"""What OpenAI's API has beyond a conversation and its tokens is done or refused by name."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from chunkcache.protocol import AnswerRequest, JsonForm, Message
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.routes import ROUTERS
from chunkcache.service.calls import told_messages

QUESTION = "where is the cat"
USER = [{"role": "user", "content": QUESTION}]
SCHEMA = {"type": "object", "properties": {"room": {"type": "string"}}}
SEARCH = {"type": "file_search", "vector_store_ids": ["default"]}
FIND = {"type": "function", "name": "find", "parameters": {"type": "object"}}
COUNT = {**FIND, "name": "count"}
READ_PATHS = [
    route.path
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, BoundedRoute) and "GET" in route.methods
]


def respond(served: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/responses", json={"input": QUESTION, **body})


def chat(served: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/chat/completions", json={"messages": USER, **body})


# ------------------------------------------------------------------ queries


@pytest.mark.parametrize("path", READ_PATHS)
def test_an_unknown_part_of_a_query_is_refused_by_name(http: httpx.Client, path: str) -> None:
    response = http.get(path.replace("{", "").replace("}", ""), params={"nonsense": "1"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_parameter"), error
    assert error["param"] == "nonsense"


def test_a_kept_response_is_not_streamed_again(served: Any) -> None:
    responses = served.client().responses
    made = responses.create(model="tiny-chat", input=QUESTION)
    assert responses.retrieve(made.id).output_text == made.output_text
    for wish, param in (({"stream": True}, "stream"), ({"include": ["x"]}, "include[]")):
        with pytest.raises(openai.BadRequestError) as caught:
            responses.retrieve(made.id, **wish)
        assert caught.value.param == param


def test_pages_are_turned_back(served: Any) -> None:
    client = served.client()
    made = [client.vector_stores.create(name=name).id for name in "abcd"]
    back = client.vector_stores.list(order="asc", before=made[3], limit=2)
    assert [store.id for store in back.data] == made[1:3] and back.has_more
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        client.vector_stores.list(before=made[3], after=made[0])
    with pytest.raises(openai.BadRequestError, match="an id in this list"):
        client.vector_stores.list(before="vs_none")


# ------------------------------------------------------------------ allowed tools


def allowed(mode: str, *tools: dict[str, Any]) -> dict[str, Any]:
    named = [{name: tool[name] for name in ("type", "name") if name in tool} for tool in tools]
    return {"type": "allowed_tools", "mode": mode, "tools": named}


@pytest.mark.parametrize(
    ("choice", "searched", "called"),
    [
        (allowed("auto", SEARCH), True, None),
        (allowed("auto", FIND), False, None),
        (allowed("required", SEARCH, FIND), True, None),
        (allowed("required", COUNT), False, ["count"]),
        (allowed("required", FIND, COUNT), False, ["find", "count"]),
    ],
)
def test_tools_that_are_not_allowed_are_as_none(
    served: Any, choice: dict[str, Any], searched: bool, called: list[str] | None
) -> None:
    response = respond(served, tools=[FIND, SEARCH, COUNT], tool_choice=choice)
    assert response.status_code == 200, response.text
    done = response.json()
    assert done["tool_choice"] == choice
    assert (done["output"][0]["type"] == "file_search_call") == searched
    (request,) = served.service.requests
    assert (request.top_k != 0) == searched
    functions = None if request.form is None else [f.name for f in request.form.functions]
    assert functions == called


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (allowed("auto", {"type": "function", "name": "lost"}), "'lost', which is not among"),
        (allowed("auto", SEARCH), "'file_search', which is not among"),
        (allowed("required"), "tool_choice"),
        ({**allowed("auto", FIND), "mode": "none"}, "tool_choice"),
    ],
)
def test_what_cannot_be_allowed_is_refused(served: Any, choice: Any, said: str) -> None:
    error = respond(served, tools=[FIND], tool_choice=choice).json()["error"]
    assert said in error["message"] or said in error["param"]
    assert served.service.requests == []


# ------------------------------------------------------------------ what JSON is for


def test_what_json_is_for_is_told_to_the_model(served: Any) -> None:
    wanted = {"name": "place", "description": "The room, in French.", "schema": SCHEMA}
    chat(served, response_format={"type": "json_schema", "json_schema": wanted})
    respond(served, text={"format": {"type": "json_schema", **wanted}})
    chat(served, response_format={"type": "json_object"})
    told = [told_messages(request)[-1].content for request in served.service.requests]
    assert (
        told[0] == told[1] == f"{QUESTION}\n\nReply with JSON. What it is for: The room, in French."
    )
    assert told[2] == QUESTION


def test_it_is_told_behind_the_question_not_behind_its_answers(served: Any) -> None:
    wanted = {"name": "place", "description": "A room.", "schema": SCHEMA}
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    turns = [
        *USER, {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "hall"},
    ]  # fmt: skip
    form = {"type": "json_schema", "json_schema": wanted}
    assert chat(served, messages=turns, response_format=form).status_code == 200
    (request,) = served.service.requests
    first, *others = told_messages(request)
    assert first.content.endswith("A room.") and others == list(request.messages[1:])


def test_without_a_form_nothing_is_told() -> None:
    asked = AnswerRequest(messages=[Message(role="user", content=QUESTION)])
    assert told_messages(asked) == asked.messages


def test_where_nobody_asks_nobody_is_told() -> None:
    form = JsonForm(json_schema={}, description="A room.")
    asked = AnswerRequest(messages=[Message(role="assistant", content="Hello.")], form=form)
    assert told_messages(asked) == asked.messages


# ------------------------------------------------------------------ hints


def test_hints_about_another_cache_are_taken(served: Any) -> None:
    part = {"type": "text", "text": QUESTION, "prompt_cache_breakpoint": {"mode": "explicit"}}
    hints = {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}
    answers = [
        chat(served),
        chat(served, messages=[{"role": "user", "content": [part]}], **hints),
        respond(served),
        respond(served, input=[{"role": "user", "content": [{**part, "type": "input_text"}]}],
                **hints),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(answer.json()["chunkcache"]["notes"] == [] for answer in answers)
    plain, hinted, *others = served.service.requests
    assert plain == hinted and others[0] == others[1]


def test_wishes_about_reasoning_are_noted(served: Any) -> None:
    for wish, noted in (({"context": "auto"}, 0), ({"mode": "standard"}, 0), ({"mode": "pro"}, 1)):
        assert len(respond(served, reasoning=wish).json()["chunkcache"]["notes"]) == noted


def test_a_store_may_be_described(served: Any) -> None:
    store = served.client().vector_stores.create(name="a", description="pets")
    assert store.name == "a"
