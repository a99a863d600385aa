"""Streamed text equals whole text, however it was cut into tokens; stop strings never show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chunkcache.engine.text import TextStream

END = "<|im_end|>"


@pytest.fixture(scope="module")
def byte_for_token() -> Any:
    """The hardest tokenizer for a stream: every byte is a token of its own."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END)


@pytest.fixture(scope="module")
def word_marks() -> Any:
    """A tokenizer whose decoder drops the space before the first word only (SentencePiece)."""
    words = ["<unk>", "▁the", "▁fox", "es", "▁", "'s", ".", "<0xC3>", "<0xA9>", "<0xF0>"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    inner.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, unk_token="<unk>")


def stream(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """Deltas as an engine would send them: it ends at a stop string."""
    text, deltas = TextStream(tokenizer, stop), []
    for token in ids:
        deltas.append(text.push(token))
        assert text.text == "".join(deltas)
        if text.stopped:
            break
    deltas.append(text.finish())
    assert text.text == "".join(deltas)
    assert text.finish() == ""
    return deltas, text.text


def whole(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return list(ids)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
@pytest.mark.parametrize("name", ["byte_for_token", "tokenizer"])
def test_deltas_add_up_to_the_whole_text_for_any_tokens(
    request: pytest.FixtureRequest, name: str, data: st.DataObject
) -> None:
    """Also for tokens that no text gives: half characters, lone continuation bytes, specials."""
    tokenizer = request.getfixturevalue(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=14))
    assert stream(tokenizer, ids)[1] == whole(tokenizer, ids)


@given(
    pieces=st.lists(
        st.sampled_from(
            [["▁the"], ["▁fox"], ["es"], ["▁"], ["'s"], ["<0xC3>", "<0xA9>"], [END], ["<unk>"]]
        ),
        max_size=8,
    )
)
@settings(deadline=None, max_examples=200)
def test_deltas_add_up_to_the_whole_text_with_byte_tokens_too(
    word_marks: Any, pieces: list[list[str]]
) -> None:
    ids = word_marks.convert_tokens_to_ids([token for piece in pieces for token in piece])
    assert stream(word_marks, ids)[1] == whole(word_marks, ids)


def test_a_broken_byte_token_leaves_the_characters_before_it_as_shown(word_marks: Any) -> None:
    """This decoder then calls all bytes of the run broken, but é has been sent."""
    ids = word_marks.convert_tokens_to_ids(["<0xC3>", "<0xA9>", "<0xF0>"])
    assert whole(word_marks, ids) == "\ufffd" * 3
    assert stream(word_marks, ids) == (["", "é", "", "\ufffd"], "é\ufffd")
    fox = word_marks.convert_tokens_to_ids("▁fox")
    assert stream(word_marks, [*ids, fox])[1] == "é\ufffd fox"


@given(text=st.text(max_size=12))
@settings(deadline=None, max_examples=100)
def test_no_delta_ends_within_a_character(byte_for_token: Any, text: str) -> None:
    ids = ids_of(byte_for_token, text)
    deltas, shown = stream(byte_for_token, ids)
    assert shown == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in delta for delta in deltas)


def test_a_character_of_four_tokens_comes_whole_with_its_last(byte_for_token: Any) -> None:
    deltas, _ = stream(byte_for_token, ids_of(byte_for_token, "a🙂b"))
    assert deltas == ["a", "", "", "", "🙂", "b", ""]


def test_an_unfinished_character_is_shown_as_broken_at_the_end(byte_for_token: Any) -> None:
    ids = ids_of(byte_for_token, "a🙂")[:-1]
    deltas, shown = stream(byte_for_token, ids)
    assert shown == whole(byte_for_token, ids) == "a\ufffd"
    assert deltas[:-1] == ["a", "", "", ""]


def test_a_replacement_character_that_was_really_written_is_kept(byte_for_token: Any) -> None:
    assert stream(byte_for_token, ids_of(byte_for_token, "a\ufffdb\ufffd"))[1] == "a\ufffdb\ufffd"


def test_spaces_are_neither_lost_nor_cleaned_up(word_marks: Any, byte_for_token: Any) -> None:
    ids = word_marks.convert_tokens_to_ids(["▁the", "▁fox", "es", "▁", "▁fox", "'s", "."])
    deltas, shown = stream(word_marks, ids)
    assert shown == "the foxes  fox's."
    assert deltas[:3] == ["the", " fox", "es"]
    # transformers would join "do n't ." into "don't." once it sees all of it
    assert stream(byte_for_token, ids_of(byte_for_token, "do n't ."))[1] == "do n't ."


def test_special_tokens_are_not_shown_and_leave_joins_as_they_are(word_marks: Any) -> None:
    end = word_marks.convert_tokens_to_ids(END)
    the, fox = word_marks.convert_tokens_to_ids(["▁the", "▁fox"])
    for ids in ([the, end, fox], [end, end, the, fox], [the, end, end, end, fox, end]):
        assert stream(word_marks, ids)[1] == "the fox"


# ------------------------------------------------------------------ stop strings


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The slow twin: read character by character; the first complete stop string ends it."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stop if s and text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


letters = st.text("abc", max_size=12)


@given(text=letters, stop=st.lists(st.text("abc", max_size=4), max_size=3).map(tuple))
@settings(deadline=None, max_examples=400)
def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(
    byte_for_token: Any, text: str, stop: tuple[str, ...]
) -> None:
    _, shown = stream(byte_for_token, ids_of(byte_for_token, text), stop)
    assert shown == cut(text, stop)


@given(
    pieces=st.lists(st.sampled_from(["the", " fox", " the fox", "x", " "]), max_size=8),
    stop=st.lists(st.sampled_from(["the", "fox", "x ", "e f", " the fox", "xx"]), max_size=3),
)
@settings(deadline=None, max_examples=200)
def test_what_is_shown_does_not_depend_on_how_the_text_was_cut_into_tokens(
    tokenizer: Any, byte_for_token: Any, pieces: list[str], stop: list[str]
) -> None:
    text = "".join(pieces)
    long_tokens = [t for piece in pieces for t in ids_of(tokenizer, piece)]
    by_bytes = stream(byte_for_token, ids_of(byte_for_token, text), tuple(stop))[1]
    assert stream(tokenizer, long_tokens, tuple(stop))[1] == by_bytes == cut(text, tuple(stop))


def test_a_stop_string_in_pieces_is_held_back_until_it_is_certain(byte_for_token: Any) -> None:
    deltas, _ = stream(byte_for_token, ids_of(byte_for_token, "xENEND!"), ("END",))
    assert deltas == ["x", "", "", "EN", "", "", ""]
    deltas, _ = stream(byte_for_token, ids_of(byte_for_token, "xENx"), ("END",))
    assert deltas == ["x", "", "", "ENx", ""]


def test_what_was_held_back_is_shown_when_the_answer_ends(byte_for_token: Any) -> None:
    deltas, shown = stream(byte_for_token, ids_of(byte_for_token, "xEN"), ("END",))
    assert deltas == ["x", "", "", "EN"]
    assert shown == "xEN"


def test_an_answer_that_begins_with_a_stop_string_is_empty(byte_for_token: Any) -> None:
    text = TextStream(byte_for_token, ("END",))
    for token in ids_of(byte_for_token, "END"):
        assert text.push(token) == ""
    assert text.stopped
    assert text.push(ids_of(byte_for_token, "x")[0]) == ""
    assert (text.text, text.finish()) == ("", "")


def test_a_stop_string_that_finish_completes_still_stops(byte_for_token: Any) -> None:
    """The last character of the stop string is the broken one that only finish() shows."""
    text = TextStream(byte_for_token, ("a\ufffd",))
    for token in ids_of(byte_for_token, "xa🙂")[:-1]:
        text.push(token)
    assert not text.stopped
    assert text.finish() == ""
    assert text.stopped
    assert text.text == "x"


def test_of_stop_strings_that_end_together_the_longest_counts(byte_for_token: Any) -> None:
    ids = ids_of(byte_for_token, "xabc")
    assert stream(byte_for_token, ids, ("c", "bc", "abc"))[1] == "x"
    assert stream(byte_for_token, ids, ("abc", "b"))[1] == "xa"  # b is complete before abc is


def test_an_empty_stop_string_stops_nothing(byte_for_token: Any) -> None:
    assert stream(byte_for_token, ids_of(byte_for_token, "abc"), ("",))[1] == "abc"
