"""What fits into the context: prompts, answers without a limit, several choices."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import PromptTooLong
from chunkcache.protocol import GivenDocument


def test_too_long_prompts_are_refused_or_lose_their_last_passages(
    open_cache: Callable[..., ChunkCache],
) -> None:
    long = [GivenDocument(id=str(i), text="word " * 1000) for i in range(3)]
    strict = open_cache()
    with pytest.raises(PromptTooLong, match="overflow = drop"):
        strict.ask("why?", documents=long)
    strict.close()
    lenient = open_cache(engine={"overflow": "drop"})
    answer = lenient.ask("why?", documents=long, max_tokens=2)
    assert any("dropped" in note for note in answer.report.notes)
    assert answer.report.prompt_tokens <= 4096 - 2
    kept = [c.document_id for c in answer.citations]
    assert kept == sorted(kept) and kept[0] == "0"
    with pytest.raises(PromptTooLong):
        lenient.ask("why? " * 5000, documents=long)


def test_who_names_no_limit_gets_the_room_that_is_left(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(engine={"max_new_tokens_default": 300})
    documents = [GivenDocument(text="word " * 750)]
    prompt_tokens = cache.ask("why?", documents=documents, max_tokens=1).report.prompt_tokens
    assert 4096 - 300 < prompt_tokens < 4096
    left = 4096 - prompt_tokens
    asked = {"documents": documents, "ignore_eos": True}
    assert cache.ask("why?", **asked).completion_tokens == left
    with pytest.raises(PromptTooLong, match=f"{prompt_tokens} prompt tokens and {left + 1} for"):
        cache.ask("why?", **asked, max_tokens=left + 1)
    short = cache.ask("why?", documents=[], ignore_eos=True)
    assert short.completion_tokens == 300


def test_choices_without_a_limit_share_the_room(open_cache: Callable[..., ChunkCache]) -> None:
    cache = open_cache(engine={"max_new_tokens_default": 4000, "kv_capacity_bytes": 1 << 20})
    answer = cache.ask("why? " * 480, documents=[], ignore_eos=True, n=3)
    room = cache.runtime.engine.capacity_tokens - answer.report.prompt_tokens
    assert room - 3 * 64 <= answer.completion_tokens <= room
