"""Prompts without our system text, and prompts without the model's template."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import processors

from chunkcache.chunk import Chunk, SpanKind
from chunkcache.config import PromptSettings
from chunkcache.engine.prompt import PromptBuilder
from chunkcache.errors import InvalidRequest
from chunkcache.protocol import Message

ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
READY = "<|im_start|>user\nfoo<|im_end|>\n<|im_start|>assistant\n"


def opening_texts(tokenizer: Any) -> Any:
    """The tokenizer with a BOS that it puts before every text."""
    made = copy.deepcopy(tokenizer)
    made.bos_token = "<|pad|>"
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", made.bos_token_id)]
    )
    return made


def without_system_role(tokenizer: Any) -> Any:
    made = opening_texts(tokenizer)
    made.chat_template = ALTERNATING
    return made


def without_template(tokenizer: Any) -> Any:
    made = opening_texts(tokenizer)
    made.chat_template = None
    return made


KINDS: dict[str, Callable[[Any], Any]] = {
    "no bos": copy.deepcopy,
    "bos": opening_texts,
    "no system role": without_system_role,
    "no template": without_template,
}


@pytest.fixture(scope="module", params=list(KINDS))
def subject(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    return KINDS[request.param](tokenizer)


@pytest.fixture(scope="module", params=["system", "user"])
def builder(request: pytest.FixtureRequest, subject: Any) -> PromptBuilder:
    return PromptBuilder(subject, PromptSettings(system="Be brief.", documents_in=request.param))


def user(text: str) -> Message:
    return Message(role="user", content=text)


CONVERSATIONS = [
    [user("Who?")],
    [user("Who?"), Message(role="assistant", content="Nobody."), user("Why?")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_plain_conversation_is_the_template_s_alone(
    builder: PromptBuilder, subject: Any, messages: list[Message]
) -> None:
    prompt = builder.build(messages, [], "plain")
    text = subject.decode(prompt.token_ids, skip_special_tokens=False)
    if subject.chat_template:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        whole = subject.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.removeprefix("<|pad|>") == str(whole).removeprefix("<|pad|>")
    assert "Be brief." not in text
    assert "Be brief." in subject.decode(builder.build(messages, []).token_ids)
    assert [s.start for s in prompt.spans] == [0, *(s.end for s in prompt.spans[:-1])]
    assert not prompt.head_is_canonical
    kinds = [span.kind for span in prompt.spans]
    assert kinds.count(SpanKind.HISTORY) == (len(messages) > 1)


def test_plain_changes_nothing_with_a_system_text_or_documents(
    builder: PromptBuilder, subject: Any
) -> None:
    own = [Message(role="system", content="Sing."), user("foo")]
    assert builder.build(own, [], "plain") == builder.build(own, [])
    ids = tuple(subject("bar", add_special_tokens=False)["input_ids"])
    chunks = [Chunk(chunk_id="c", token_ids=ids, text="bar")]
    assert builder.build([user("foo")], chunks, "plain") == builder.build([user("foo")], chunks)


def test_a_raw_prompt_is_read_as_it_stands(builder: PromptBuilder, subject: Any) -> None:
    prompt = builder.build([user(READY)], [], "raw")
    assert [span.kind for span in prompt.spans] == [SpanKind.QUESTION]
    opens = subject("a")["input_ids"][0] == subject.bos_token_id
    text = subject.decode(prompt.token_ids, skip_special_tokens=False)
    assert text == ("<|pad|>" if opens else "") + READY
    control = {subject.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>")}
    assert control <= set(prompt.token_ids)
    if opens:  # a prompt that brings its own BOS gets no second one
        again = builder.build([user("<|pad|>foo")], [], "raw").token_ids
        assert again.count(subject.bos_token_id) == 1


def test_a_raw_prompt_that_is_no_text_is_refused(builder: PromptBuilder) -> None:
    with pytest.raises(InvalidRequest, match=r"prompt: .*valid Unicode"):
        builder.build([user("\ud800")], [], "raw")
