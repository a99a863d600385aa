"""`/v1/responses` held to a form: JSON of a schema, calls of functions, and what comes after them.

The model is a random one: whatever is right about its answers the server has seen to.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

QUESTION = "which animal?"
EXTRA = {"chunkcache": {"top_k": 0}}


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog", "owl"]
    legs: int = Field(ge=0, le=9)


FIND = {"type": "function", "name": "find_animal", "description": "finds one", "strict": True,
        "parameters": Animal.model_json_schema()}  # fmt: skip
OTHER = {"type": "function", "name": "count", "parameters": {"type": "object"}}


def create(served: Any, **wishes: Any) -> Any:
    filled = {"model": "tiny", "input": QUESTION, "extra_body": EXTRA, "max_output_tokens": 200}
    return served.client().responses.create(**{**filled, **wishes})


def test_parse_gives_an_object_of_the_schema(served_for_real: Any) -> None:
    responses = served_for_real.client().responses
    wishes = {"model": "tiny", "input": QUESTION, "extra_body": EXTRA, "max_output_tokens": 200}
    done = responses.parse(text_format=Animal, **wishes)
    assert isinstance(done.output_parsed, Animal) and done.status == "completed"
    assert done.text.format.type == "json_schema"
    with responses.stream(text_format=Animal, **wishes) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == done.output_parsed


def test_a_schema_that_is_cut_is_incomplete(served_for_real: Any) -> None:
    wanted = {"type": "json_schema", "name": "animal", "schema": Animal.model_json_schema()}
    sources = {"chunkcache": {"top_k": 0, "citations": "text"}}
    cut = create(served_for_real, text={"format": wanted}, max_output_tokens=3, extra_body=sources)
    assert cut.status == "incomplete" and cut.output_text.startswith('{"')


CHOICES = ["required", {"type": "function", "name": "find_animal"}]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_forced_call_whole_and_streamed(served_for_real: Any, choice: Any) -> None:
    tools = [FIND] if choice == "required" else [OTHER, FIND]
    done = create(served_for_real, tools=tools, tool_choice=choice)
    (call,) = done.output
    assert (call.type, call.name, call.status) == ("function_call", "find_animal", "completed")
    assert call.call_id.startswith("call_") and done.chunkcache["notes"] == []
    Animal.model_validate_json(call.arguments)
    events = list(create(served_for_real, tools=tools, tool_choice=choice, stream=True))
    for event in events:
        type(event).model_validate(event.model_dump(mode="json", by_alias=True))
    names = [event.type.removeprefix("response.") for event in events]
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert names == [
        "created", "in_progress", "output_item.added",
        *["function_call_arguments.delta"] * len(deltas),
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    (streamed,) = events[-1].response.output
    assert "".join(deltas) == events[-3].arguments == streamed.arguments == call.arguments
    assert events[2].item.id == streamed.id and events[2].item.name == "find_animal"


def test_a_call_that_is_cut_before_its_name_is_no_call(served_for_real: Any) -> None:
    wishes = {"tools": [FIND], "tool_choice": "required", "max_output_tokens": 1}
    done = create(served_for_real, **wishes)
    assert (done.status, done.output_text) == ("incomplete", "")
    *_, last = create(served_for_real, stream=True, **wishes)
    assert (last.type, last.response.output[0].type) == ("response.incomplete", "message")


@pytest.mark.parametrize("kept", [False, True])
def test_a_function_s_output_is_answered(served_for_real: Any, kept: bool) -> None:
    first = create(served_for_real, tools=[FIND], tool_choice="required")
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "an owl"}
    if kept:
        again = create(served_for_real, input=[result], previous_response_id=first.id)
    else:
        asked = {"role": "user", "content": QUESTION}
        again = create(served_for_real, input=[asked, call, result])
    assert again.status in {"completed", "incomplete"} and again.output[0].type == "message"
    alone = create(served_for_real, max_output_tokens=1)  # the call and its output are in there
    assert again.usage.input_tokens > alone.usage.input_tokens + len(call.arguments) // 2
    items = served_for_real.client().responses.input_items.list(again.id, order="asc")
    kinds = [item.type for item in items]
    whole = ["message", "function_call", "function_call_output"]
    assert kinds == (whole[-1:] if kept else whole)
    if not kept:
        assert json.loads(items.data[1].arguments) == json.loads(call.arguments)


def test_a_search_satisfies_a_required_tool(served_for_real: Any) -> None:
    search = {"type": "file_search", "vector_store_ids": ["default"]}
    done = create(
        served_for_real, tools=[search, FIND], tool_choice="required", extra_body={},
        max_output_tokens=4,
    )  # fmt: skip
    assert [item.type for item in done.output] == ["file_search_call", "message"]


def test_an_output_without_a_question_is_refused(served_for_real: Any) -> None:
    result = {"type": "function_call_output", "call_id": "call_1", "output": "an owl"}
    with pytest.raises(openai.BadRequestError, match="no message of a user's"):
        create(served_for_real, input=[result])
