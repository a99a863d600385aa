"""JSON answers, forced calls, several choices and log probabilities, through OpenAI's own client.

The model is a random one: whatever is right about its answers the server has seen to.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

USER = [{"role": "user", "content": "which animal?"}]
EXTRA = {"chunkcache": {"top_k": 0}}


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog", "owl"]
    legs: int = Field(ge=0, le=9)
    code: str = Field(pattern="^[A-Z]{3}$")


def tool(name: str, parameters: Any) -> Any:
    function = {"name": name, "description": f"does {name}", "parameters": parameters}
    return {"type": "function", "function": function}


FIND = tool("find_animal", Animal.model_json_schema())
COUNT = tool(
    "count-legs",
    {
        "type": "object",
        "properties": {"of": {"enum": ["cats", "dogs"]}},
        "required": ["of"],
        "additionalProperties": False,
    },
)


def ask(served: Any, **wishes: Any) -> Any:
    filled = {"model": "tiny", "messages": USER, "max_tokens": 200, "extra_body": EXTRA, **wishes}
    return served.client().chat.completions.create(**filled)


def pieces(chunks: Any, index: int = 0) -> list[Any]:
    return [c for chunk in chunks for c in chunk.choices if c.index == index]


def test_parse_gives_an_object_of_the_schema(served_for_real: Any) -> None:
    completions = served_for_real.client().chat.completions
    done = completions.parse(
        model="tiny", messages=USER, response_format=Animal, max_tokens=200, extra_body=EXTRA
    )
    assert isinstance(done.choices[0].message.parsed, Animal)
    assert done.choices[0].finish_reason == "stop"
    with completions.stream(
        model="tiny", messages=USER, response_format=Animal, max_tokens=200, extra_body=EXTRA
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == done.choices[0].message.parsed


def test_json_object_is_an_object_and_a_short_limit_cuts_a_schema(served_for_real: Any) -> None:
    wanted = {"name": "animal", "schema": Animal.model_json_schema()}
    asked = {"type": "json_schema", "json_schema": wanted}
    cut = ask(served_for_real, response_format=asked, max_tokens=4).choices[0]
    assert cut.finish_reason == "length" and cut.message.content.startswith('{"')
    (end,) = served_for_real.service.runtime.model.eos_ids
    brace = served_for_real.service.runtime.model.tokenizer.convert_tokens_to_ids("}")
    whole = ask(
        served_for_real, response_format={"type": "json_object"},
        logit_bias={str(end): 100, str(brace): 100},
    ).choices[0]  # fmt: skip
    assert (json.loads(whole.message.content), whole.finish_reason) == ({}, "stop")


@pytest.mark.parametrize(
    ("choice", "finish_reason"),
    [
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "find_animal"}}, "stop"),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "find_animal"}}],
                },
            },
            "tool_calls",
        ),
    ],
)
def test_a_forced_call_whole_and_streamed(
    served_for_real: Any, choice: Any, finish_reason: str
) -> None:
    tools = [FIND] if choice == "required" else [COUNT, FIND]
    done = ask(served_for_real, tools=tools, tool_choice=choice)
    message = done.choices[0].message
    assert (message.content, done.choices[0].finish_reason) == (None, finish_reason)
    (call,) = message.tool_calls
    assert (call.function.name, call.type) == ("find_animal", "function")
    Animal.model_validate_json(call.function.arguments)
    chunks = list(ask(served_for_real, tools=tools, tool_choice=choice, stream=True))
    opening, *calls, closing = pieces(chunks)
    assert opening.delta.role == "assistant" and closing.finish_reason == finish_reason
    parts = [part for piece in calls for part in piece.delta.tool_calls]
    assert parts[0].id.startswith("call_") and parts[0].function.name == "find_animal"
    assert [part.id for part in parts[1:]] == [None] * (len(parts) - 1)
    assert "".join(part.function.arguments for part in parts) == call.function.arguments
    assert all(piece.delta.content is None for piece in calls)


def test_required_leaves_the_choice_of_the_function_to_the_model(served_for_real: Any) -> None:
    names = set()
    for letter in "cf":
        token = served_for_real.service.runtime.model.tokenizer.convert_tokens_to_ids(letter)
        done = ask(
            served_for_real, tools=[COUNT, FIND], tool_choice="required",
            logit_bias={str(token): 20},
        )  # fmt: skip
        (call,) = done.choices[0].message.tool_calls
        names.add(call.function.name)
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == ({"of"} if call.function.name == "count-legs" else
                                  {"kind", "legs", "code"})  # fmt: skip
    assert names == {"count-legs", "find_animal"}


def test_a_call_cut_off_before_its_name_is_no_call(served_for_real: Any) -> None:
    done = ask(served_for_real, tools=[FIND], tool_choice="required", max_tokens=2)
    assert (done.choices[0].finish_reason, done.choices[0].message.tool_calls) == ("length", None)
    inside = ask(served_for_real, tools=[FIND], tool_choice="required", max_tokens=20).choices[0]
    assert inside.finish_reason == "length"
    assert inside.message.tool_calls[0].function.name == "find_animal"


def test_a_forced_call_reads_the_functions_and_leaves_the_head_alone(served_for_real: Any) -> None:
    plain = ask(served_for_real, max_tokens=1)
    forced = ask(served_for_real, tools=[FIND], tool_choice="required", max_tokens=1)
    spans = [done.chunkcache["spans"] for done in (plain, forced)]
    assert spans[0][0]["tokens"] == spans[1][0]["tokens"]
    assert spans[0][-1]["tokens"] + 50 < spans[1][-1]["tokens"]


def test_a_conversation_with_calls_and_results_goes_on(served_for_real: Any) -> None:
    first = ask(served_for_real, tools=[FIND], tool_choice="required")
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "four legs"}
    done = ask(served_for_real, messages=[*USER, message, result], tools=[FIND], max_tokens=3)
    assert done.choices[0].message.content
    assert any("not offered" in note for note in done.chunkcache["notes"])


def test_choices_with_seeds_whole_and_streamed(served_for_real: Any) -> None:
    wish = {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 12}
    done = ask(served_for_real, **wish)
    texts = [choice.message.content for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert done.usage.completion_tokens > 12
    assert [
        ask(served_for_real, **{**wish, "n": 1, "seed": 7 + i}).choices[0].message.content
        for i in range(3)
    ] == texts
    stream_options = {"include_usage": True}
    chunks = list(ask(served_for_real, **wish, stream=True, stream_options=stream_options))
    for index, text in enumerate(texts):
        choice = pieces(chunks, index)
        assert choice[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in choice) == text
        assert [c.finish_reason for c in choice if c.finish_reason] == [
            done.choices[index].finish_reason
        ]
    assert chunks[-1].usage.completion_tokens == done.usage.completion_tokens


def test_greedy_choices_are_the_same_and_a_note_says_so(served_for_real: Any) -> None:
    done = ask(served_for_real, n=2, max_tokens=3)
    assert len({choice.message.content for choice in done.choices}) == 1
    assert any(note.startswith("n: ") for note in done.chunkcache["notes"])


def test_logprobs_in_openais_shape_whole_and_streamed(served_for_real: Any) -> None:
    wish = {"logprobs": True, "top_logprobs": 3, "max_tokens": 12, "seed": 2, "temperature": 1}
    choice = ask(served_for_real, **wish).choices[0]
    tokens = choice.logprobs.content
    text = b"".join(bytes(token.bytes) for token in tokens)
    assert text.decode("utf-8", "replace").startswith(choice.message.content[:4])
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= token.top_logprobs[0].logprob
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) < 1 + 1e-6
        if not token.token.startswith("bytes:"):
            assert token.token.encode() == bytes(token.bytes)
    chunks = ask(served_for_real, **wish, stream=True)
    streamed = [t for c in pieces(chunks) if c.logprobs for t in c.logprobs.content]
    # the second prompt was read from the prefix cache, where its rows ran in other company
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in tokens], abs=1e-4)
    without = ask(served_for_real, max_tokens=2, logprobs=True).choices[0].logprobs.content
    assert without[0].top_logprobs == []
    assert ask(served_for_real, max_tokens=2).choices[0].logprobs is None


def test_penalties_and_biases_reach_the_sampler(served_for_real: Any) -> None:
    token = served_for_real.service.runtime.model.tokenizer.convert_tokens_to_ids("x")
    bias = {str(token): 100}
    assert ask(served_for_real, logit_bias=bias, max_tokens=3).choices[0].message.content == "xxx"
    other = ask(
        served_for_real, logit_bias={str(token): 30}, presence_penalty=2.0, frequency_penalty=2.0,
        max_tokens=40, extra_body={**EXTRA, "repetition_penalty": 10.0},
    ).choices[0]  # fmt: skip
    assert other.message.content.startswith("x") and set(other.message.content) != {"x"}
    short = ask(served_for_real, max_tokens=5, extra_body={**EXTRA, "ignore_eos": True})
    assert short.usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("wish", "param", "reason"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "string", "pattern": "(["}}}},
            "response_format.json_schema.schema", "cannot be followed",
        ),
        (
            {"tools": [COUNT, tool("f", {"type": "object", "properties": {"a": {"type": "?"}}})],
             "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tools.1.function.parameters", "cannot be followed",
        ),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "0 to 319"),
        ({"n": 16, "max_tokens": 2500}, "n", "so few"),
    ],
)  # fmt: skip
def test_what_only_the_model_can_tell_is_a_400_that_names_the_field(
    served_for_real: Any, wish: Any, param: str, reason: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=reason) as caught:
            ask(served_for_real, **wish, stream=stream)
        assert caught.value.param == param
