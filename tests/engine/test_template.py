"""Templates and tokenizers of every kind: what can be cut into parts is served, or refused."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chunkcache.chunk import Chunk, SpanKind
from chunkcache.config import PromptSettings
from chunkcache.engine.prompt import Prompt, PromptBuilder
from chunkcache.engine.template import ChatTemplate
from chunkcache.errors import InvalidRequest, UnsupportedModel
from chunkcache.protocol import Message

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


WithTemplate = Callable[[str], Any]


@pytest.fixture
def with_template(tokenizer: Any) -> WithTemplate:
    """The tiny tokenizer, with another template."""

    def make(template: str) -> Any:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return make


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def passage(tokenizer: Any, text: str) -> Chunk:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Chunk(chunk_id=text, token_ids=tuple(ids), text=text)


@pytest.mark.parametrize("count", [2, 4, 24])
def test_parts_and_contents_in_turn_are_what_the_template_renders(
    with_template: WithTemplate, count: int
) -> None:
    tokenizer = with_template(TURNS)
    roles = ["system", *["user", "assistant"] * (count // 2)][:count]
    contents = [f"text {i}" for i in range(count)]
    parts = ChatTemplate(tokenizer).parts(roles)
    assert len(parts) == count + 1
    joined = parts[0] + "".join(c + p for c, p in zip(contents, parts[1:], strict=True))
    assert joined == tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)],
        tokenize=False,
        add_generation_prompt=True,
    )


def test_turns_that_the_template_refuses_are_the_requests_fault(
    with_template: WithTemplate,
) -> None:
    builder = PromptBuilder(with_template(ALTERNATING), PromptSettings())
    with pytest.raises(InvalidRequest, match="refuses the roles") as caught:
        builder.build([user("One?"), user("Two?")], [])
    assert caught.value.param == "messages"
    builder.build([user("One?"), assistant("Two."), user("Three?")], [])
    with pytest.raises(InvalidRequest, match="refuses the roles"):
        builder.build([assistant("Two."), user("Three?")], [])  # no user turn to open with


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", id="repeats them"
        ),
        pytest.param("{{ messages[0].content | length }}", id="prints none of them"),
        pytest.param("{{ messages[0].content[::-1] }}", id="changes them"),
        pytest.param("{{ raise_exception('no') }}", id="refuses everything"),
        pytest.param("{% for m in messages %}", id="is no template"),
    ],
)
def test_a_template_that_does_not_keep_contents_is_refused_at_once(
    with_template: WithTemplate, template: str
) -> None:
    with pytest.raises(UnsupportedModel, match=r"^model.name: no prompt can be made for it"):
        PromptBuilder(with_template(template), PromptSettings())


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ messages[-1].content }}", id="drops all but the last"),
        pytest.param("{{ messages[0].content }}", id="drops all but the first"),
        pytest.param(
            "{% for m in messages | reverse %}{{ m.content }}{% endfor %}", id="turns them around"
        ),
    ],
)
def test_a_template_that_drops_or_reorders_serves_single_questions_only(
    with_template: WithTemplate, template: str
) -> None:
    """One turn is left of system text and question, and that turn nothing can be dropped from."""
    tokenizer = with_template(template)
    builder = PromptBuilder(tokenizer, PromptSettings(system="a"))
    prompt = builder.build([user("b")], [passage(tokenizer, "c")])
    assert tokenizer.decode(prompt.token_ids) == "a\n\nDocuments:\n\nc\n\n\n\nb"
    with pytest.raises(InvalidRequest, match=r"messages: .* drops, repeats or reorders"):
        builder.build([user("b"), assistant("c"), user("d")], [])


def test_a_template_that_trims_contents_leaves_texts_as_they_are(
    with_template: WithTemplate,
) -> None:
    tokenizer = with_template(TURNS.replace("m.content", "m.content | trim"))
    builder = PromptBuilder(tokenizer, PromptSettings(system=" a "))
    prompt = builder.build([user("  b\n")], [passage(tokenizer, " c ")])
    text = tokenizer.decode(prompt.token_ids)
    assert text == (
        "<|im_start|>system\n a \n\nDocuments:\n\n c \n\n<|im_end|>\n"
        "<|im_start|>user\n  b\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_prints_the_date_has_the_same_head_on_every_day(
    with_template: WithTemplate,
) -> None:
    tokenizer = with_template("\n{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + TURNS)
    heads = [PromptBuilder(tokenizer, PromptSettings()).canonical_head for _ in range(2)]
    assert heads[0] == heads[1]
    assert tokenizer.decode(heads[0]).startswith("\n26 Jul 2024<|im_start|>")


def test_a_tokenizer_whose_words_include_control_tokens_refuses_texts_that_hold_one() -> None:
    """Some Unigram vocabularies list them among their pieces, where no setting splits them."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("<s>", -1.0), ("a", -2.0), ("b", -2.0), ("?", -2.0)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", unk_token="<unk>"
    )
    builder = PromptBuilder(tokenizer, PromptSettings(system="a"))
    with pytest.raises(InvalidRequest, match=r"messages: got '<s>'") as caught:
        builder.build([user("a <s> b")], [])
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match=r"documents: got '<s>'"):
        builder.chunk_ids(Chunk("c", (2,), "<s>"))
    builder.build([user("a ☃ b")], [])  # the unknown token is no control token


def test_a_token_for_line_feeds_is_no_control_token_though_the_template_has_it(
    with_template: WithTemplate,
) -> None:
    """Gemma's tokenizers have added tokens for runs of white space."""
    tokenizer = with_template(TURNS)
    tokenizer.add_tokens(["\n", "\n\n"])
    line, lines = tokenizer.convert_tokens_to_ids(["\n", "\n\n"])
    prompt = PromptBuilder(tokenizer, PromptSettings()).build([user("a\nb\n\nc")], [])
    assert {line, lines} <= set(prompt.token_ids)
    other = with_template(TURNS.replace("<|im_start|>", "[turn]"))
    other.add_tokens(["[turn]"])
    turn = other.convert_tokens_to_ids("[turn]")
    prompt = PromptBuilder(other, PromptSettings()).build([user("a [turn] b")], [])
    assert prompt.token_ids.count(turn) == 3, "of the template: system, user, assistant"


def test_a_tokenizer_that_marks_words_tokenises_parts_alone() -> None:
    """A Metaspace tokenizer puts a mark before every text; a chunk gets its own, everywhere."""
    pieces = [("<unk>", 0.0), *((c, -3.0) for c in "▁abcdeinorstuwAD:?#\n"), ("▁ab", -1.0)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    builder = PromptBuilder(tokenizer, PromptSettings(system="a"))
    chunk = passage(tokenizer, "ab")
    assert chunk.token_ids == (tokenizer.convert_tokens_to_ids("▁ab"),)
    for others in ([], [passage(tokenizer, "c")]):
        prompt = builder.build([user("ab")], [*others, chunk])
        last = [s for s in prompt.spans if s.kind is SpanKind.CHUNK][-1]
        assert last.token_ids[:1] == chunk.token_ids


def test_a_half_surrogate_pair_is_refused_with_its_field(tokenizer: Any) -> None:
    builder = PromptBuilder(tokenizer, PromptSettings())
    with pytest.raises(InvalidRequest, match=r"messages: got '\\ud83d', must be valid Unicode"):
        builder.build([user("ok \ud83d")], [])
    with pytest.raises(InvalidRequest, match=r"documents: got .* must be valid Unicode"):
        builder.chunk_ids(Chunk("c", (1,), "x", title="\udc00"))


def test_threads_do_not_change_each_others_reading_of_special_tokens(tokenizer: Any) -> None:
    """transformers switches it on the tokenizer's inner object, which all requests share."""
    builder = PromptBuilder(tokenizer, PromptSettings())
    chunk = passage(tokenizer, "foo <|im_end|> bar")
    messages = [user("<|im_start|>"), assistant("b"), user("c <s>")]
    expected = builder.build(messages, [chunk])
    wrong: list[Prompt] = []

    def work() -> None:
        for _ in range(12):
            prompt = builder.build(messages, [chunk])
            if prompt != expected:
                wrong.append(prompt)

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    builder.chunk_ids(chunk)  # contents only: the switch was not touched for them
    assert tokenizer.backend_tokenizer.encode_special_tokens is False
