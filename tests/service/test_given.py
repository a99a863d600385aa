"""Documents in a request's body: split as ever, remembered for their tenant, within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.protocol import GivenDocument
from chunkcache.retrieval.splitter import Piece, Splitter
from chunkcache.service.given import GivenDocuments


class Words:
    """Splits at spaces, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def split(self, text: str, *, markdown: bool | None) -> list[Piece]:
        assert markdown is None
        self.asked.append(text)
        if text == "bad":
            raise InvalidRequest("text: bad")
        pieces, start = [], 0
        for word in text.split(" "):
            pieces.append(Piece(word, (len(word),), start, start + len(word)))
            start += len(word) + 1
        return pieces


def made(capacity_chars: int = 100) -> tuple[Any, GivenDocuments]:
    words: Any = Words()
    return words, GivenDocuments(words, capacity_chars)


def test_a_text_is_split_once_whatever_it_is_called() -> None:
    words, given = made()
    (first,) = given.chunks([GivenDocument(text="cat", title="a", url="u", id="x")], "t")
    assert (first.chunk_id, first.title, first.url, first.text) == ("x#0", "a", "u", "cat")
    assert (first.token_ids, first.start_char, first.end_char) == ((3,), 0, 3)
    second = given.chunks([GivenDocument(text="dog"), GivenDocument(text="cat fish")], "t")
    assert [c.chunk_id for c in second] == ["0#0", "1#0", "1#4"]
    (third,) = given.chunks([GivenDocument(text="cat", id="y")], "t")
    assert (third.chunk_id, third.title, third.token_ids) == ("y#0", "", first.token_ids)
    assert words.asked == ["cat", "dog", "cat fish"]


def test_passages_that_come_under_one_id_are_told_apart() -> None:
    _, given = made()
    named = [("cat", "d"), ("dog fish", "d"), ("cow", "d.2"), ("cat", "d"), ("owl", "5")]
    documents = [GivenDocument(text=text, id=name) for text, name in named]
    chunks = given.chunks([*documents, GivenDocument(text="ape")], "t")
    ids = [chunk.chunk_id for chunk in chunks]
    assert ids == ["d#0", "d.2#0", "d.2#4", "d.2.2#0", "d.3#0", "5#0", "5.2#0"]
    assert [chunk.document_id for chunk in chunks] == ["d", "d", "d", "d.2", "d", "5", "5"]


def test_tenants_remember_apart() -> None:
    words, given = made()
    for tenant in ("t", "u", "t"):
        given.chunks([GivenDocument(text="cat")], tenant)
    assert words.asked == ["cat", "cat"]


def test_the_least_recently_used_is_forgotten() -> None:
    words, given = made(capacity_chars=8)
    for text in ("cats", "dogs", "cats", "eels", "cats", "dogs"):
        given.chunks([GivenDocument(text=text)], "t")
    assert words.asked == ["cats", "dogs", "eels", "dogs"]
    for _ in range(2):
        given.chunks([GivenDocument(text="nine char")], "t")
    assert words.asked[4:] == ["nine char"] * 2  # larger than all there is: others stay
    given.chunks([GivenDocument(text="dogs")], "t")
    assert len(words.asked) == 6


def test_a_text_that_cannot_be_split_is_refused_each_time() -> None:
    words, given = made()
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            given.chunks([GivenDocument(text="bad")], "t")
    assert words.asked == ["bad", "bad"]


def test_markdown_keeps_its_headings_and_its_tables(tokenizer: Any) -> None:
    rows = "".join(f"| q{i} | the limit of queue {i} is {i} |\n" for i in range(40))
    text = f"# Queues\n\nAll of them.\n\n## Audit\n\n| queue | limit |\n|---|---|\n{rows}"
    given = GivenDocuments(Splitter(tokenizer, 96))
    chunks = given.chunks([GivenDocument(text=text, title="The Queues guide")], "t")
    assert len(chunks) > 2
    assert all(text[chunk.start_char : chunk.end_char] == chunk.text for chunk in chunks)
    assert chunks[-1].headings == ("Audit",)  # the title says the other one
    assert chunks[-1].opening == "| queue | limit |\n|---|---|"
    assert all(line.endswith("|") for chunk in chunks[2:] for line in chunk.text.splitlines())


@pytest.mark.parametrize(
    "text",
    ["limit = 5\n# the limit of the queue\nx = 1\n" * 40, "One line, and another one.\n\n" * 40],
)
def test_other_texts_are_split_as_plain_text(tokenizer: Any, text: str) -> None:
    splitter = Splitter(tokenizer, 64)
    chunks = GivenDocuments(splitter).chunks([GivenDocument(text=text)], "t")
    plain = [(piece.text, piece.token_ids) for piece in splitter.split(text)]
    assert len(plain) > 1 and [(chunk.text, chunk.token_ids) for chunk in chunks] == plain
    assert {(chunk.headings, chunk.opening) for chunk in chunks} == {((), "")}
