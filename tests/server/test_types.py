"""Values of another type than the field's: refused by name, not read as what may be meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import openai
import pytest
from openai.types import completion_create_params as text_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

if TYPE_CHECKING:
    import httpx

CHAT, TEXTS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
STORES, SEARCH = "/v1/vector_stores", "/v1/vector_stores/default/search"
KEEP, QUOTA = "/v1/chunkcache/cache/terms", "/v1/chunkcache/quota"
USER = [{"role": "user", "content": "where is the cat"}]
NEEDED: dict[str, Any] = {
    CHAT: {"messages": USER}, TEXTS: {"prompt": "where"}, RESPONSES: {"input": "where"},
    "/v1/embeddings": {"input": "where"}, STORES: {}, SEARCH: {"query": "where"},
    KEEP: {"texts": ["a"]}, QUOTA: {},
    f"{STORES}/default/files": {"file_id": "file-0"},
}  # fmt: skip


def search_tool(**fields: Any) -> list[Any]:
    return [{"type": "file_search", "vector_store_ids": ["default"], **fields}]


WRONG = [
    (CHAT, {"max_tokens": "2"}, "max_tokens"),
    (CHAT, {"max_tokens": True}, "max_tokens"),
    (CHAT, {"max_tokens": 2.5}, "max_tokens"),
    (CHAT, {"stream": "yes"}, "stream"),
    (CHAT, {"stream": 1}, "stream"),
    (CHAT, {"temperature": "0"}, "temperature"),
    (CHAT, {"temperature": False}, "temperature"),
    (CHAT, {"n": "1"}, "n"),
    (CHAT, {"top_k": "3"}, "top_k"),
    (CHAT, {"seed": "7"}, "seed"),
    (CHAT, {"logprobs": 1}, "logprobs"),
    (CHAT, {"store": "no"}, "store"),
    (CHAT, {"metadata": {"a": 1}}, "metadata.a"),
    (CHAT, {"logit_bias": {"5": "1"}}, "logit_bias.5"),
    (CHAT, {"stop": [5]}, "stop.0"),
    (CHAT, {"stream": True, "stream_options": {"include_usage": 1}},
     "stream_options.include_usage"),
    (CHAT, {"stream": True, "stream_options": {"include_obfuscation": 0}},
     "stream_options.include_obfuscation"),
    (CHAT, {"stream_options": True}, "stream_options"),
    (CHAT, {"chunkcache": {"top_k": "3"}}, "chunkcache.top_k"),
    (CHAT, {"chunkcache": {"budget": True}}, "chunkcache.budget"),
    (CHAT, {"chunkcache": {"match_messages": "yes"}}, "chunkcache.match_messages"),
    (CHAT, {"chunkcache": {"keep": {"priority": "1"}}}, "chunkcache.keep.priority"),
    (CHAT, {"chunkcache": {"exactness": {"drift": "1"}}}, "chunkcache.exactness.drift"),
    (CHAT, {"documents": [{"text": "a", "id": 5}]}, "documents.0.id"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    (TEXTS, {"max_tokens": "1"}, "max_tokens"),
    (RESPONSES, {"max_output_tokens": "5"}, "max_output_tokens"),
    (RESPONSES, {"store": 0}, "store"),
    (RESPONSES, {"input": [{"role": "user", "content": 5}]}, "input.0.content"),
    (RESPONSES, {"tools": search_tool(max_num_results="3")}, "tools.0.max_num_results"),
    (RESPONSES, {"tools": search_tool(filters={"type": "eq", "key": "a", "value": []})},
     "tools.0.filters.value"),
    ("/v1/embeddings", {"dimensions": "16"}, "dimensions"),
    ("/v1/embeddings", {"input": 5}, "input"),
    (SEARCH, {"max_num_results": "3"}, "max_num_results"),
    (SEARCH, {"rewrite_query": 0}, "rewrite_query"),
    (SEARCH, {"filters": {"type": "and", "filters": [{"type": "eq", "key": 5, "value": 1}]}},
     "filters.filters.0.key"),
    (STORES, {"expires_after": {"anchor": "last_active_at", "days": "3"}}, "expires_after.days"),
    (f"{STORES}/default/files", {"attributes": {"a": []}}, "attributes.a"),
    (KEEP, {"priority": "1"}, "priority"),
    (KEEP, {"priority": True}, "priority"),
    (KEEP, {"expires_after_s": "5"}, "expires_after_s"),
    (QUOTA, {"limit_bytes": "5"}, "limit_bytes"),
]  # fmt: skip


def test_a_value_of_another_type_is_refused_by_name(served: Any, http: httpx.Client) -> None:
    for path, fields, param in WRONG:
        method = "PUT" if path == QUOTA else "POST"
        response = http.request(method, path, json=NEEDED[path] | fields)
        error = response.json()["error"]
        assert response.status_code == 400, (path, fields)
        assert (error["param"], error["code"]) == (param, "invalid_type"), (path, fields)
        assert error["message"].startswith(f"{param}: got ") and "more)" not in error["message"]
    assert served.service.requests == []


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (TEXTS, "echo", 0), (TEXTS, "best_of", True), (TEXTS, "best_of", "1"),
        (RESPONSES, "background", 0), (RESPONSES, "top_logprobs", False),
    ],
)  # fmt: skip
def test_a_neutral_value_is_of_its_own_type(
    http: httpx.Client, path: str, name: str, value: Any
) -> None:
    error = http.post(path, json=NEEDED[path] | {name: value}).json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def test_a_null_and_a_whole_number_with_a_point_mean_what_they_say(
    served: Any, http: httpx.Client
) -> None:
    fields = {
        "max_tokens": 2.0, "n": 1.0, "temperature": 0, "top_p": 1, "seed": -7.0, "top_k": None,
        "stream": None, "stop": None, "logit_bias": {"5": -100}, "metadata": None,
    }  # fmt: skip
    assert http.post(CHAT, json=NEEDED[CHAT] | fields).status_code == 200
    sampling = served.service.requests[-1].sampling
    assert (sampling.max_tokens, sampling.n, sampling.seed) == (2, 1, -7)
    assert sampling.logit_bias == {5: -100.0}
    assert http.post(TEXTS, json=NEEDED[TEXTS] | {"best_of": 1.0, "echo": False}).is_success


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, completion_create_params.CompletionCreateParamsBase),
        (RESPONSES, response_create_params.ResponseCreateParamsBase),
        (TEXTS, text_create_params.CompletionCreateParamsBase),
    ],
)
def test_a_null_asks_for_nothing_in_whatever_openai_may_be_sent_as_null(
    http: httpx.Client, path: str, fields: Any
) -> None:
    """Clients that write out all their fields send it."""
    kinds = get_type_hints(fields)
    names = [name for name, kind in kinds.items() if type(None) in get_args(kind)]
    assert {"temperature", "stream_options"} <= set(names)
    nulls = dict.fromkeys(set(names) - NEEDED[path].keys())
    response = http.post(path, json=NEEDED[path] | nulls)
    assert response.status_code == 200, response.text


def test_the_values_of_a_query_are_text(http: httpx.Client) -> None:
    assert http.get(STORES, params={"limit": "1"}).json()["object"] == "list"
    error = http.get(STORES, params={"limit": "some"}).json()["error"]
    assert error["param"] == "limit"


def test_the_openai_client_gets_the_name_of_the_field(served: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().chat.completions.create(model="x", messages=USER, max_tokens="2")  # type: ignore[call-overload]
    assert (caught.value.param, caught.value.code) == ("max_tokens", "invalid_type")
