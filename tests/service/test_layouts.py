"""Prompts that retrieve nothing, and prompts without a chat template, through the whole service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chunkcache import ChunkCache
from chunkcache.chunk import Rung
from chunkcache.errors import InvalidRequest
from chunkcache.filters import Comparison
from chunkcache.protocol import AnswerDelta, AnswerFinished, AnswerRequest, AnswerStarted, Message


def test_a_cache_that_retrieves_nothing_unless_asked(
    open_cache: Callable[..., ChunkCache], pages: Path
) -> None:
    cache = open_cache(retrieval={"top_k": 0})
    cache.ingest([pages])
    assert cache.ask("where do owls hunt?").citations == []
    assert len(cache.ask("where do owls hunt?", top_k=2).citations) == 2


@pytest.mark.parametrize("layout", ["plain", "raw"])
def test_other_layouts_are_answered_and_counted(cache: ChunkCache, layout: Any) -> None:
    question = Message(role="user", content="the quick brown fox " * 12)
    request = AnswerRequest(messages=[question], layout=layout, top_k=0)
    first, second = cache.ask(request), cache.ask(request)
    assert first.text == second.text and first.citations == []
    assert first.report.rung is Rung.FULL
    assert second.report.reused_tokens > 0  # prefixes are shared in every layout
    for report in (first.report, second.report):
        parts = report.reused_tokens + report.recomputed_tokens + report.computed_tokens
        assert parts == report.prompt_tokens == sum(span.tokens for span in report.spans)
    chat = cache.ask(request.model_copy(update={"layout": "chat"}))
    assert chat.report.prompt_tokens > first.report.prompt_tokens  # it has our system text


def test_a_raw_prompt_is_the_chat_it_spells_out(cache: ChunkCache) -> None:
    """The slow twin of `plain`: the template written out by hand."""
    question = Message(role="user", content="why?")
    plain = cache.ask(AnswerRequest(messages=[question], layout="plain", top_k=0))
    ready = "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    spelt = Message(role="user", content=ready)
    raw = cache.ask(AnswerRequest(messages=[spelt], layout="raw", top_k=0))
    assert raw.report.prompt_tokens == plain.report.prompt_tokens
    assert raw.text == plain.text


def test_a_raw_prompt_that_is_too_long_or_nothing_is_refused(cache: ChunkCache) -> None:
    for text, said in (("fox " * 5000, "prompt tokens"), ("", "prompt: got ''")):
        message = Message(role="user", content=text)
        with pytest.raises(InvalidRequest, match=said):
            cache.ask(AnswerRequest(messages=[message], layout="raw", top_k=0))


@pytest.mark.parametrize(
    "more", [{"documents": []}, {"top_k": 1}, {"top_k": None}, {"messages": ["a", "b"]}]
)
def test_a_raw_prompt_takes_nothing_beside_it(more: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"messages": ["a"], "top_k": 0, **more}
    fields["messages"] = [Message(role="user", content=text) for text in fields["messages"]]
    with pytest.raises(ValidationError, match="layout raw takes one message"):
        AnswerRequest(layout="raw", **fields)


def test_events_count_the_tokens_so_far(cache: ChunkCache) -> None:
    texts = ["the quick brown fox jumps over the lazy dog"]
    started, *deltas, finished = cache.stream("why?", documents=texts, max_tokens=12)
    assert isinstance(started, AnswerStarted) and isinstance(finished, AnswerFinished)
    assert started.prompt_tokens == finished.report.prompt_tokens
    counts = [event.completion_tokens for event in deltas if isinstance(event, AnswerDelta)]
    assert counts == sorted(counts) and 0 < counts[-1] <= finished.completion_tokens


def test_notes_about_the_request_are_passed_on(cache: ChunkCache) -> None:
    question = Message(role="user", content="why?")
    request = AnswerRequest(messages=[question], notes=("name changes nothing",), top_k=0)
    assert cache.ask(request).report.notes[0] == "name changes nothing"


def test_an_answer_draws_on_documents_that_pass_the_filters(cache: ChunkCache) -> None:
    for colour in ("red", "blue"):
        cache.ingest_bytes(
            f"{colour}.txt", f"the quick {colour} fox".encode(), attributes={"colour": colour}
        )
    question = Message(role="user", content="the quick fox")
    red = Comparison(type="eq", key="colour", value="red")
    every = cache.ask(AnswerRequest(messages=[question]))
    some = cache.ask(AnswerRequest(messages=[question], filters=red))
    assert {c.title for c in every.citations} == {"red.txt", "blue.txt"}
    assert {c.title for c in some.citations} == {"red.txt"}
