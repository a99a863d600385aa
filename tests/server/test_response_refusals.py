"""What `/v1/responses` does not do is refused by name, and nothing is asked then."""

from __future__ import annotations

from typing import Any

import httpx
import pytest


def post(served: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/responses", json={"input": "where is the cat", **body})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
         "input.0.content"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    served: Any, fields: dict[str, Any], param: str
) -> None:
    response = post(served, **fields)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert served.service.requests == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "must be a user's message"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]},
         "no message of a user's"),
        ({"input": [{"type": "file_search_call"}]}, "no message"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": "x", "type": 3}]}, "input.0"),
        ({"tool_choice": "required"}, "there are none"),
        ({"tool_choice": {"type": "file_search"}}, "no file_search"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "not among the tools"),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "the same name"),
        ({"tools": [{"type": "function", "name": "f f"}]}, "name"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "vector_store_ids"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"] * 17}]}, "at most 16"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"]}] * 2}, "more than one"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"]}], "documents": []},
         "replaces documents"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"], "max_num_results": 51}]},
         "max_num_results"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"],
                     "ranking_options": {"score_threshold": -0.5}}]}, "score_threshold"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a"], "ranking_options": {
            "score_threshold": 0.5, "hybrid_search": {"text_weight": 2}}}]}, "exclude each other"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}, "tool_choice": "required",
          "tools": [{"type": "function", "name": "f"}]}, "exclude each other"),
        ({"text": {"format": {"type": "json_object"}}, "ignore_eos": True}, "ignore_eos"),
        ({"stop": list("abcde")}, "at most 4"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"model": "tiny-chat:plain",
          "tools": [{"type": "file_search", "vector_store_ids": ["default"]}]}, "never retrieves"),
        ({"previous_response_id": "resp_none"}, "Previous response with id 'resp_none' not found"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(served: Any, fields: dict[str, Any], said: str) -> None:
    response = post(served, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert said in error["message"] and error["type"] == "invalid_request_error"
    assert served.service.requests == []
