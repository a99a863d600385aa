"""Documents in a request are counted before they are split, and bounded."""

from __future__ import annotations

from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import PromptTooLong
from chunkcache.protocol import GivenDocument
from chunkcache.retrieval.splitter import Splitter
from chunkcache.service.given import GivenDocuments

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture
def split_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is split from here on."""
    seen: list[str] = []
    true = Splitter.split

    def split(self: Splitter, text: str, **options: Any) -> Any:
        seen.append(text)
        return true(self, text, **options)

    monkeypatch.setattr(Splitter, "split", split)
    return seen


def test_the_limit_is_exact_and_nothing_is_split_beyond_it(
    tokenizer: Any, split_texts: list[str]
) -> None:
    splitter = Splitter(tokenizer, 64)
    documents = [GivenDocument(text=TEXT + "a"), GivenDocument(text=TEXT + "b")]
    tokens = sum(splitter.count(document.text) for document in documents)
    with pytest.raises(PromptTooLong, match=f"documents: got {tokens} tokens or more") as caught:
        GivenDocuments(splitter).chunks(documents, "t", most_tokens=tokens - 1)
    assert caught.value.param == "documents"
    assert split_texts == []
    assert GivenDocuments(splitter).chunks(documents, "t", most_tokens=tokens)
    assert len(split_texts) == 2


def test_a_text_without_end_is_given_up_at_the_limit(
    tokenizer: Any, split_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    true = Splitter.count

    def count(self: Splitter, text: str) -> int:
        counted.append(len(text))
        return true(self, text)

    monkeypatch.setattr(Splitter, "count", count)
    given = GivenDocuments(Splitter(tokenizer, 64))
    with pytest.raises(PromptTooLong):
        given.chunks([GivenDocument(text="word " * 800_000)], "t", most_tokens=1000)
    assert sum(counted) <= 50_000
    assert split_texts == []


def test_what_was_split_before_counts_too(tokenizer: Any, split_texts: list[str]) -> None:
    given = GivenDocuments(Splitter(tokenizer, 64))
    documents = [GivenDocument(text=TEXT)]
    pieces = given.chunks(documents, "t")
    tokens = sum(len(piece.token_ids) for piece in pieces)
    assert given.chunks(documents, "t", most_tokens=tokens) == pieces
    with pytest.raises(PromptTooLong):
        given.chunks(documents, "t", most_tokens=tokens - 1)
    assert split_texts == [TEXT]


def test_a_service_takes_no_more_than_four_contexts_even_if_it_would_drop_them(
    cache: ChunkCache, split_texts: list[str]
) -> None:
    with pytest.raises(PromptTooLong, match="16384"):  # four times 4096
        cache.ask("why?", documents=[TEXT] * 60, max_tokens=2)
    assert split_texts == []


def test_messages_far_too_long_are_refused_before_anything_is_searched(
    cache: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    monkeypatch.setattr(
        cache, "_search", lambda query, *rest, **where: searched.append(query) or []
    )
    with pytest.raises(PromptTooLong, match="messages: got") as caught:
        cache.ask("word " * 800_000, max_tokens=2)
    assert caught.value.param == "messages"
    assert searched == []
    with pytest.raises(PromptTooLong):  # too long for the prompt, not for a look
        cache.ask("word " * 2_000, max_tokens=2)
    assert len(searched) == 1


def test_a_long_text_counts_the_same_in_a_batch(tokenizer: Any) -> None:
    splitter = Splitter(tokenizer, 64)
    text = "the quick brown fox. " * 600
    assert len(text) > 10_000
    assert splitter.count(text) == len(splitter.encode(text))
