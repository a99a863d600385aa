"""Chat requests that are refused, and how: by name, with OpenAI's error object."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

USER = [{"role": "user", "content": "where is the cat"}]


def post(served: Any, **body: Any) -> httpx.Response:
    filled = {"model": "tiny-chat", "messages": USER, **body}
    return httpx.post(f"{served.url}/v1/chat/completions", json=filled)


NEUTRAL = {
    "frequency_penalty": 0.0, "presence_penalty": 0, "repetition_penalty": 1.0, "min_p": 0,
    "logit_bias": {}, "logprobs": False, "top_logprobs": None, "tools": [], "tool_choice": "none",
    "functions": None, "function_call": "none", "modalities": ["text"], "service_tier": "auto",
    "web_search_options": {},
    "n": 1, "min_tokens": 0, "ignore_eos": False, "response_format": {"type": "text"},
}  # fmt: skip


def test_values_that_ask_for_nothing_are_taken(served: Any) -> None:
    assert post(served, **NEUTRAL).status_code == post(served).status_code == 200
    assert served.service.requests[0] == served.service.requests[1]


@pytest.mark.parametrize("name", sorted(set(NEUTRAL)))
def test_the_same_field_with_nonsense_in_it_is_refused(served: Any, name: str) -> None:
    response = post(served, **{name: "nonsense"})
    assert response.status_code == 400
    assert response.json()["error"]["param"].split(".")[0] == name


def test_five_stop_strings_are_refused_with_the_limit(served: Any) -> None:
    error = post(served, stop=["a", "b", "c", "d", "e"]).json()["error"]
    assert error["param"] == "stop" and "at most 4" in error["message"]


def test_the_fields_before_tools_name_what_to_send(served: Any) -> None:
    error = post(served, functions=[{"name": "f"}]).json()["error"]
    assert "send those" in error["message"] and "tools and tool_choice" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": [{"type": "function", "function": {"name": "f", "examples": []}}]},
         "tools.0.function.examples"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"echo": None}, "echo"),
        ({"chunkcache": {"salt": "x"}}, "chunkcache.salt"),
        ({"documents": [{"text": "t", "body": "b"}]}, "documents.0.body"),
        ({"messages": [{"role": "user", "content": "x", "nom": "n"}]}, "messages.0.nom"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
        ),
        ({"stream": True, "stream_options": {"obfuscate": True}}, "stream_options.obfuscate"),
    ],
)  # fmt: skip
def test_unsupported_fields_are_refused_by_name(
    served: Any, fields: dict[str, Any], param: str
) -> None:
    response = post(served, **fields)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert param in error["message"] and error["type"] == "invalid_request_error"
    assert served.service.requests == []


def test_a_refused_content_part_is_named(served: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        served.client().chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": [part]}]
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"n": 17},
        {"n": True},
        {"max_tokens": True},
        {"temperature": False},
        {"chunkcache": {"budget": True}},
        {"logit_bias": {"1": True}},
        {"min_p": 1.1},
        {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"repetition_penalty": 0},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"one": 1}},
        {"logit_bias": {str(token): 1 for token in range(1025)}},
        {"logprobs": True, "top_logprobs": 21},
        {"top_logprobs": 3},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_object"}, "ignore_eos": True},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function"}},
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "required",
            "response_format": {"type": "json_object"},
        },
        {"messages": [{"role": "assistant", "content": None}, *USER]},
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]},
        {"messages": [{"role": "tool", "content": "x"}, *USER]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ],
                }
            ]
        },
        {"temperature": 2.5},
        {"temperature": "NaN"},
        {"temperature": "inf"},
        {"max_tokens": 2**31},
        {"seed": 2**63},
        {"top_k": 2**31},
        {"top_k": -1},
        {"stream": "maybe"},
        {"top_p": 0},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": ""},
        {"max_tokens": 0},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"stream_options": {"include_usage": True}},
        {"documents": [], "chunkcache": {"vector_store_id": "vs_1"}},
        {"documents": [], "chunkcache": {"top_k": 1}},
        {"chunkcache": {"top_k": 65}},
        {"chunkcache": {"policy": "magic"}},
        {"chunkcache": {"exactness": {"drift": 0}}},
        {"chunkcache": {"exactness": {"drift": 0.1, "f1": 0.1}}},
        {"chunkcache": {"exactness": {"drift": 0.1}, "budget": 0.2}},
    ],
)
def test_wrong_values_are_refused(served: Any, fields: dict[str, Any]) -> None:
    response = post(served, **fields)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "Value error" not in response.json()["error"]["message"]  # pydantic's words, not ours
    assert served.service.requests == []


def test_unknown_model_and_vector_store(served: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        served.client().chat.completions.create(model="gpt-4o", messages=USER)
    assert caught.value.code == "model_not_found"
    response = post(served, chunkcache={"vector_store_id": "vs_none"})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "vector_store_id")


def test_a_wish_for_no_field_at_all_is_no_error(served: Any) -> None:
    """Nulls stand for defaults in every optional field."""
    schema = served.app.openapi()["components"]["schemas"]["ChatRequest"]
    nulls = {name: None for name in schema["properties"] if name not in schema["required"]}
    assert "temperature" in nulls
    assert httpx.post(
        f"{served.url}/v1/chat/completions", json={**nulls, "messages": USER}
    ).status_code == 200  # fmt: skip


def test_conflicting_fields_are_told_apart(served: Any) -> None:
    error = post(served, max_tokens=5, max_completion_tokens=6).json()["error"]
    assert error["message"] == (
        "max_tokens and max_completion_tokens differ; send one of them."
    )  # fmt: skip
