"""Calls and their results laid out as text, with templates that know tools and that do not."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from chunkcache.config import PromptSettings
from chunkcache.engine.prompt import PromptBuilder
from chunkcache.engine.turns import as_text
from chunkcache.errors import InvalidRequest
from chunkcache.forms import FunctionCall
from chunkcache.protocol import Message

CALL = FunctionCall(id="call_1", name="weather", arguments='{"city": "Köln"}')
OTHER = FunctionCall(id="call_2", name="news", arguments="not JSON")
TALK = [
    Message(role="user", content="rain?"),
    Message(role="assistant", content="", calls=(CALL, OTHER)),
    Message(role="tool", content="sunny", call_id="call_1"),
    Message(role="tool", content="none", call_id="call_2"),
]
CALLS_AS_TEXT = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "news", "arguments": "not JSON"}\n</tool_call>'
)


def laid_out(tokenizer: Any, messages: list[Message]) -> str:
    prompt = PromptBuilder(tokenizer, PromptSettings(system="S")).build(messages, [])
    return str(tokenizer.decode(prompt.token_ids))


def test_a_template_that_lays_out_any_role_gets_the_role_tool(tokenizer: Any) -> None:
    assert laid_out(tokenizer, TALK) == (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\nrain?<|im_end|>\n"
        f"<|im_start|>assistant\n{CALLS_AS_TEXT}<|im_end|>\n"
        "<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>tool\nnone<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


STRICT = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] or "
    "(m.role == 'user') != (loop.index0 % 2 == 1) %}{{ raise_exception('roles') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("template", [STRICT, None])
def test_without_that_role_results_are_one_user_turn_that_names_the_functions(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    plain.chat_template = template
    results = "Result of weather:\nsunny\n\nResult of news:\nnone"
    text = laid_out(plain, TALK)
    if template:
        assert text == f"[system]S[user]rain?[assistant]{CALLS_AS_TEXT}[user]{results}[assistant]"
    else:
        assert text == (
            f"S\n\nQuestion: rain?\n\nAnswer: {CALLS_AS_TEXT}\n\nQuestion: {results}\n\nAnswer:"
        )


def test_text_beside_calls_stays_and_a_result_of_an_unknown_call_is_one() -> None:
    spoken = Message(role="assistant", content="let me see", calls=(CALL,))
    (turn,) = as_text([spoken], takes_tools=True)
    assert turn.content.startswith("let me see\n<tool_call>") and turn.calls == ()
    (result,) = as_text([Message(role="tool", content="x", call_id="?")], takes_tools=False)
    assert (result.role, result.content) == ("user", "Result of the call:\nx")


def test_a_conversation_without_a_question_is_none(tokenizer: Any) -> None:
    with pytest.raises(InvalidRequest, match="ends with a user message"):
        laid_out(tokenizer, TALK[1:])
    with pytest.raises(InvalidRequest, match="ends with a user message"):
        laid_out(tokenizer, TALK[:2])
