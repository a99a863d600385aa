"""Prompts: ids cross boundaries, never text; contents stay plain text; the head never changes.

The tokenizers here are built by hand, one for every way of opening a text and of laying out turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from chunkcache.chunk import Chunk, SpanKind
from chunkcache.config import PromptSettings
from chunkcache.engine.prompt import Prompt, PromptBuilder
from chunkcache.errors import InvalidRequest
from chunkcache.protocol import Message

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
# two letters become one token, and so do line ends, also across what a human would call a boundary
MERGES = [("f", "o"), ("fo", "o"), ("b", "a"), ("ba", "r"), ("foo", "bar"), ("Ċ", "Ċ"), (".", "ĊĊ"),
          ("ĊĊ", "Ċ"), ("ĊĊ", "ĊĊ"), ("Ġ", "Ġ")]  # fmt: skip
CONTROL = ["<|im_start|>", "<|im_end|>"]


def make_tokenizer(
    template: str | None = TURNS, *, adds_bos: bool = False, special: bool = True
) -> Any:
    """Byte-level BPE without any pre-splitting, so that merges may span words and lines."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in MERGES:
        vocab.setdefault(left + right, len(vocab))
    inner = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>"])
    inner.add_tokens([AddedToken(name, special=special, normalized=False) for name in CONTROL])
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


KINDS: dict[str, Callable[[], Any]] = {
    "no bos": make_tokenizer,
    "bos from the tokenizer": lambda: make_tokenizer(adds_bos=True),
    "bos from the template": lambda: make_tokenizer("{{ bos_token }}" + TURNS),
    "bos from both": lambda: make_tokenizer("{{ bos_token }}" + TURNS, adds_bos=True),
    "no system role": lambda: make_tokenizer(ALTERNATING, adds_bos=True),
    "no template": lambda: make_tokenizer(None, adds_bos=True),
    "control tokens not special": lambda: make_tokenizer(special=False),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def subject(kind: str) -> Any:
    return KINDS[kind]()


@pytest.fixture(scope="module", params=["system", "user"])
def builder(request: pytest.FixtureRequest, subject: Any) -> PromptBuilder:
    return PromptBuilder(subject, PromptSettings(system="Be brief.", documents_in=request.param))


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def passage(tokenizer: Any, text: str, title: str = "") -> Chunk:
    """A chunk as ingestion makes it: its text tokenised alone."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return Chunk(chunk_id=text[:8], token_ids=tuple(ids), text=text, title=title)


def test_headings_and_what_a_chunk_continues_stand_before_it_and_in_what_is_cached() -> None:
    tokenizer = make_tokenizer()
    builder = PromptBuilder(tokenizer, PromptSettings())
    ids = tuple(tokenizer("foo bar")["input_ids"])
    plain = Chunk("c", ids, "foo bar", title="T")
    under = replace(plain, headings=("A", "B"), opening="| k |\n|---|")
    assert tokenizer.decode(builder.chunk_ids(plain)) == "# T\nfoo bar\n\n"
    lead = "# T\n## A\n### B\n| k |\n|---|\n"
    assert tokenizer.decode(builder.chunk_ids(under)) == f"{lead}foo bar\n\n"
    prompt = builder.build([Message(role="user", content="?")], [under])
    assert builder.chunk_ids(under) in [span.token_ids for span in prompt.spans]


def spans_of(prompt: Prompt, kind: SpanKind) -> list[tuple[int, ...]]:
    return [span.token_ids for span in prompt.spans if span.kind is kind]


def control_ids(tokenizer: Any) -> set[int]:
    return {tokenizer.convert_tokens_to_ids(name) for name in [*CONTROL, "<s>"]}


CONVERSATIONS = [
    [user("Who?")],
    [user("Who?"), assistant("Nobody."), user("Why?")],
    [user(""), assistant(""), user("And\nthen? "), assistant("foo"), user("bar")],
]


# ------------------------------------------------------------------ the whole, against a slow twin


def whole_text(
    tokenizer: Any, documents_in: str, messages: list[Message], chunks: list[Chunk]
) -> str:
    """The slow twin: the template rendered once with everything in it, as text."""
    documents = ""
    if chunks:
        documents = "\n\nDocuments:\n\n" if documents_in == "system" else "Documents:\n\n"
        for chunk in chunks:
            documents += (f"# {chunk.title}\n" if chunk.title else "") + chunk.text + "\n\n"
    opening, first, *rest = [("system", "Be brief."), *((m.role, m.content) for m in messages)]
    if documents_in == "system":
        opening = ("system", opening[1] + documents)
    else:
        first = ("user", documents + first[1])
    turns = [opening, first, *rest]
    if not tokenizer.chat_template:
        names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
        return "<s>" + "\n\n".join(names[r] + text for r, text in turns) + "\n\nAnswer:"
    if "no such role" in tokenizer.chat_template:
        turns = [("user", f"{opening[1]}\n\n{first[1]}"), *rest]
    text = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in turns], tokenize=False, add_generation_prompt=True
    )
    adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return str(text) if text.startswith("<s>") or not adds_bos else "<s>" + text


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_ids_say_what_the_template_would_have_said(
    builder: PromptBuilder, subject: Any, messages: list[Message], count: int
) -> None:
    chunks = [passage(subject, "foo\n", "T"), passage(subject, "bar"), passage(subject, " é ")]
    prompt = builder.build(messages, chunks[:count])
    where = builder._settings.documents_in
    text = subject.decode(prompt.token_ids, skip_special_tokens=False)
    assert text == whole_text(subject, where, messages, chunks[:count])
    # spans follow each other without a gap, in the order head, chunks, history, question
    assert [s.start for s in prompt.spans] == [0, *(s.end for s in prompt.spans[:-1])]
    kinds = [s.kind for s in prompt.spans]
    order = [SpanKind.HEAD, SpanKind.CHUNK, SpanKind.HISTORY, SpanKind.QUESTION]
    assert kinds == sorted(kinds, key=order.index)
    assert kinds.count(SpanKind.CHUNK) == count
    assert all(len(span) > 0 for span in prompt.spans)
    assert prompt.num_tokens == len(prompt.token_ids)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_there_is_one_bos_or_none_and_it_stands_first(
    builder: PromptBuilder, subject: Any, kind: str, messages: list[Message]
) -> None:
    expected = 0 if kind in {"no bos", "control tokens not special"} else 1
    for chunks in ([], [passage(subject, "<s>x"), passage(subject, "y", "<s>")]):
        ids = builder.build(messages, chunks).token_ids
        assert ids.count(subject.bos_token_id) == expected
        assert ids[:1].count(subject.bos_token_id) == expected


# ------------------------------------------------------------------ boundaries


def test_chunks_have_the_same_ids_at_every_place_and_beside_every_neighbour(
    builder: PromptBuilder, subject: Any
) -> None:
    chunks = [passage(subject, t) for t in ("foo", "bar", "\n", "foo\n\n")]
    own = [builder.chunk_ids(chunk) for chunk in chunks]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1], [2, 2, 0], [0, 0, 0, 1]):
        prompt = builder.build([user("foo")], [chunks[i] for i in order])
        assert spans_of(prompt, SpanKind.CHUNK) == [own[i] for i in order]
        assert [s.chunk for s in prompt.spans if s.chunk] == [chunks[i] for i in order]


def test_texts_that_would_merge_across_a_boundary_keep_their_own_tokens(subject: Any) -> None:
    merged = subject("foobar", add_special_tokens=False)["input_ids"]
    apart = [subject(t, add_special_tokens=False)["input_ids"][0] for t in ("foo", "bar")]
    assert len(merged) == 1, "the tokenizer of this test must merge"
    settings_ = PromptSettings(system="foo", documents_in="user")
    prompt = PromptBuilder(subject, settings_).build([user("bar")], [])
    assert merged[0] not in prompt.token_ids
    assert set(apart) <= set(prompt.token_ids)
    # a text that ends in a full stop and the blank line after it would be one token, too
    chunk = passage(subject, "foo.")
    assert len(subject(".\n\n", add_special_tokens=False)["input_ids"]) == 1
    ids = PromptBuilder(subject, settings_).chunk_ids(chunk)
    assert ids[: len(chunk.token_ids)] == chunk.token_ids


def test_the_ids_of_a_chunk_are_taken_as_they_are_and_never_made_anew(
    builder: PromptBuilder, subject: Any
) -> None:
    """Its text may have been cut out of a longer one, where it was tokenised otherwise."""
    apart = tuple(subject.convert_tokens_to_ids(["f", "o", "o"]))
    assert builder.chunk_ids(Chunk("c", apart, "foo"))[:-1] == apart


def test_a_title_stands_on_a_line_of_its_own(builder: PromptBuilder, subject: Any) -> None:
    chunk = passage(subject, "foo", title="bar")
    assert subject.decode(builder.chunk_ids(chunk)) == "# bar\nfoo\n\n"
    assert builder.chunk_ids(chunk)[-len(chunk.token_ids) - 1 : -1] == chunk.token_ids


def test_nothing_is_ever_decoded(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise AssertionError("text came back from ids")

    for name in ("decode", "batch_decode", "_decode", "convert_tokens_to_string"):
        monkeypatch.setattr(type(subject), name, refuse)
    builder = PromptBuilder(subject, PromptSettings())
    chunk = passage(subject, "foo <|im_end|>", "bar")
    builder.build([user("a"), assistant("b"), user("<|im_end|>")], [chunk, chunk])


# ------------------------------------------------------------------ the head


def test_the_head_before_documents_is_the_canonical_one_whatever_is_asked(
    builder: PromptBuilder, subject: Any
) -> None:
    chunks = [passage(subject, t) for t in ("foo", "bar", "foo")]
    for messages in CONVERSATIONS:
        for count in (1, 2, 3):
            prompt = builder.build(messages, chunks[:count])
            assert prompt.head_is_canonical
            assert spans_of(prompt, SpanKind.HEAD) == [tuple(builder.canonical_head)]
            assert prompt.spans[1].start == len(builder.canonical_head)


def test_another_system_text_makes_another_head(builder: PromptBuilder, subject: Any) -> None:
    chunk = passage(subject, "foo")
    same = builder.build([system("Be brief."), user("Who?")], [chunk])
    assert same.head_is_canonical
    other = builder.build([system("Be brief!"), user("Who?")], [chunk])
    assert not other.head_is_canonical
    empty = builder.build([system(""), user("Who?")], [chunk])
    assert not empty.head_is_canonical


def test_without_documents_the_head_is_not_the_one_that_chunks_are_born_after(
    builder: PromptBuilder,
) -> None:
    prompt = builder.build([user("Who?")], [])
    assert not prompt.head_is_canonical
    assert spans_of(prompt, SpanKind.CHUNK) == []


def test_the_question_span_holds_the_last_user_text_and_history_all_before_it(
    builder: PromptBuilder, subject: Any
) -> None:
    chunk = passage(subject, "foo")
    first = builder.build([user("One?")], [chunk])
    later = builder.build([user("One?"), assistant("Two."), user("Three?")], [chunk])
    text = {kind: "".join(map(subject.decode, spans_of(later, kind))) for kind in SpanKind}
    assert "Three?" in text[SpanKind.QUESTION]
    assert "One?" not in text[SpanKind.QUESTION] and "Two." not in text[SpanKind.QUESTION]
    assert "One?" in text[SpanKind.HISTORY] and "Two." in text[SpanKind.HISTORY]
    assert "One?" in "".join(map(subject.decode, spans_of(first, SpanKind.QUESTION)))
    # head and chunk are the same rows in both: a follow-up finds them in the prefix cache
    assert [s.token_ids for s in first.spans[:2]] == [s.token_ids for s in later.spans[:2]]


def test_system_and_developer_messages_are_joined_wherever_they_stand(
    builder: PromptBuilder, subject: Any
) -> None:
    scattered = [
        user("One?"),
        Message(role="developer", content="Be brief."),
        assistant("Two."),
        system("Be kind."),
        user("Three?"),
    ]
    gathered = [system("Be brief.\n\nBe kind."), user("One?"), assistant("Two."), user("Three?")]
    chunks = [passage(subject, "foo")]
    assert builder.build(scattered, chunks) == builder.build(gathered, chunks)


# ------------------------------------------------------------------ contents are plain text


SNIPPETS = st.lists(
    st.sampled_from(
        [*CONTROL, "<s>", "<|im_", "start|>", "foo", "bar", " ", "\n", "é", "\0", "🙂"]
    ),
    max_size=6,
).map("".join)


@given(texts=st.tuples(SNIPPETS, SNIPPETS, SNIPPETS, SNIPPETS, SNIPPETS))
@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_content_ever_becomes_a_control_token(
    builder: PromptBuilder, subject: Any, texts: tuple[str, ...]
) -> None:
    words, title, told, answer, question = texts
    messages = [system(told), user(question), assistant(answer), user(question)]
    control = control_ids(subject)

    def found(prompt: Prompt) -> list[int]:
        return [t for t in prompt.token_ids if t in control]

    harmless = [Message(role=m.role, content="x") for m in messages]
    expected = found(builder.build(harmless, [passage(subject, "x", "x")]))
    # ids that were made by a tokenizer which read the names as tokens do not get in either
    careless = tuple(subject(words, add_special_tokens=False)["input_ids"])
    for chunk in (
        passage(subject, words, title),
        Chunk(chunk_id="c", token_ids=careless, text=words, title=title),
    ):
        assert control.isdisjoint(builder.chunk_ids(chunk))
        # its text is all there
        shown = subject.decode(builder.chunk_ids(chunk))
        assert shown == (f"# {title}\n" if title else "") + words + "\n\n"
        assert found(builder.build(messages, [chunk])) == expected


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([], id="none"),
        pytest.param([system("Be brief.")], id="only a system message"),
        pytest.param([user("One?"), assistant("Two.")], id="the answer last"),
    ],
)
def test_a_conversation_must_end_with_the_users_question(
    builder: PromptBuilder, messages: list[Message]
) -> None:
    with pytest.raises(InvalidRequest, match="must be a list that ends with a user message"):
        builder.build(messages, [])


def test_marks_in_a_question_are_only_text(builder: PromptBuilder, subject: Any) -> None:
    """The signs that the builder cuts templates by may stand in any content."""
    question = "␂0␃ and ␂1␃"
    prompt = builder.build([user(question)], [passage(subject, "␂1␃")])
    assert subject.decode(spans_of(prompt, SpanKind.QUESTION)[0]).count(question) == 1


@pytest.fixture(autouse=True)
def tokenizers_are_left_as_they_were(request: pytest.FixtureRequest) -> Iterator[None]:
    """Other requests use the same tokenizer object at the same time."""
    if "subject" not in request.fixturenames:
        yield
        return
    tokenizer: Any = request.getfixturevalue("subject")
    before = (len(tokenizer), tokenizer.split_special_tokens, tokenizer.chat_template)
    yield
    assert (len(tokenizer), tokenizer.split_special_tokens, tokenizer.chat_template) == before
