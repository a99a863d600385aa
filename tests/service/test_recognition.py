"""Clients that bring their own passages: recognised in their messages and served from the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from chunkcache import ChunkCache
from chunkcache.chunk import Chunk, Rung
from chunkcache.protocol import (
    AnswerFinished,
    AnswerRequest,
    ChunkCacheOptions,
    GivenDocument,
    Message,
    SpanReport,
)

QUESTION = "where do owls hunt?"


def stuffed(texts: Sequence[str], question: str = QUESTION) -> str:
    """One user turn, as LangChain's stuff-documents prompt: passages joined by blank lines."""
    return "Answer from the context below.\n\n" + "\n\n".join(texts) + f"\n\nQuestion: {question}\n"


def fenced(texts: Sequence[str], question: str = QUESTION) -> str:
    """As LlamaIndex's default template for questions over text."""
    rule = "-" * 21
    body = "\n\n".join(f"page_label: {i}\n\n{text}" for i, text in enumerate(texts))
    return f"The context is below.\n{rule}\n{body}\n{rule}\nQuery: {question}\nAnswer: "


def tagged(texts: Sequence[str], question: str = QUESTION) -> str:
    """As Open WebUI's template: tagged sources, and the question after them."""
    sources = "\n".join(
        f'<source id="{i}" name="page {i}.md">{text}</source>' for i, text in enumerate(texts, 1)
    )
    return (
        f"### Task:\nAnswer with citations [id].\n\n<context>\n{sources}\n</context>\n\n{question}"
    )


def asked(*contents: str, **rest: Any) -> AnswerRequest:
    """A conversation: the roles alternate and end with the user's."""
    roles = ["user", "assistant"] * len(contents)
    turns = zip(roles[(len(contents) + 1) % 2 :], contents, strict=False)
    messages = [Message(role=role, content=content) for role, content in turns]
    options = {n: rest.pop(n) for n in list(rest) if n in ChunkCacheOptions.model_fields}
    top_k = options.pop("top_k", None)
    options = ChunkCacheOptions(**options)
    return AnswerRequest(messages=messages, options=options, top_k=top_k, **rest)


def told(cache: ChunkCache, request: AnswerRequest) -> tuple[AnswerFinished, Any]:
    handle = cache.start(request)
    events = list(handle.events())
    assert isinstance(events[-1], AnswerFinished)
    return events[-1], handle


def matched(answer: AnswerFinished) -> list[SpanReport]:
    return [span for span in answer.report.spans if span.matched]


def logits(cache: ChunkCache, request: AnswerRequest) -> torch.Tensor:
    _, handle = told(cache, request)
    return handle.outcome.first_logits


MEMORY = {"disk_capacity_bytes": 0, "host_capacity_bytes": 1 << 26}
"""No disk, which on a busy machine may be slower than computing, and is then not read."""


@pytest.fixture
def cache(open_cache: Callable[..., ChunkCache]) -> ChunkCache:
    return open_cache(store=MEMORY)


@pytest.fixture
def known(cache: ChunkCache, pages: Path) -> list[Chunk]:
    """Chunks of three documents, warm."""
    cache.ingest([pages])
    cache.warm()
    chunks = list(cache.catalog.chunks("public", "default"))
    return [c for c in chunks if len(c.token_ids) >= 50][:6]


@pytest.mark.parametrize("template", [stuffed, fenced, tagged])
def test_passages_of_a_clients_own_prompt_come_from_the_cache(
    cache: ChunkCache, known: list[Chunk], template: Callable[..., str]
) -> None:
    message = template([c.text for c in known])
    answer, handle = told(cache, asked(message))
    spans = matched(answer)
    assert {s.chunk_id for s in spans} == {c.chunk_id for c in known}
    assert {s.document_id for s in spans} == {c.document_id for c in known}
    assert all(s.kind == "chunk" and s.tier == "host" for s in spans)
    assert all(s.rung is Rung.REPAIRED and s.reused > s.tokens // 2 for s in spans)
    lacking = sum(len(c.token_ids) for c in known) - sum(s.tokens for s in spans)
    assert 0 <= lacking <= 4 * len(known)
    assert {c.chunk_id for c in answer.citations} == {c.chunk_id for c in known}
    assert len(answer.citations) == len(known)
    (note,) = [note for note in answer.report.notes if "bring" in note]
    assert "nothing was retrieved" in note and "chunkcache.top_k" in note
    off, plain = told(cache, asked(message, match_messages=False, top_k=0))
    assert handle.prompt.token_ids == plain.prompt.token_ids
    assert matched(off) == [] and off.citations == []
    assert answer.report.computed_tokens < off.report.prompt_tokens // 2


@pytest.mark.parametrize("template", [stuffed, fenced, tagged])
def test_a_whole_budget_and_mode_full_are_full_prefill(
    cache: ChunkCache, known: list[Chunk], template: Callable[..., str]
) -> None:
    message = template([c.text for c in known])
    off = logits(cache, asked(message, match_messages=False, top_k=0, mode="full"))
    full = logits(cache, asked(message, mode="full"))
    none = logits(cache, asked(message, policy="none"))
    repaired = logits(cache, asked(message, budget=1.0))
    assert torch.equal(full, off)
    assert float((repaired - off).abs().max()) < 2e-4
    assert float((none - off).abs().max()) > 1e-2  # else this test could not fail


def test_modes_full_and_exact_reuse_nothing_approximate_and_ask_the_same(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    message = stuffed([c.text for c in known])
    ids = {told(cache, asked(message, mode=m))[1].prompt.token_ids for m in ("auto", "full")}
    assert len(ids) == 1  # whatever is reused, the prompt is one and the same
    for mode in ("full", "exact"):
        answer, _ = told(cache, asked(message + mode, mode=mode))
        assert {s.rung for s in matched(answer)} <= {Rung.FULL, Rung.EXACT}
        assert answer.report.rung is not Rung.REPAIRED and len(matched(answer)) >= len(known)


def test_the_same_prompt_is_asked_whether_the_passages_are_warm_or_not(
    cache: ChunkCache, pages: Path
) -> None:
    cache.ingest([pages])
    chunks = [c for c in cache.catalog.chunks("public", "default") if len(c.token_ids) >= 50][:3]
    message = stuffed([c.text for c in chunks])
    first, cold = told(cache, asked(message))
    second, warm = told(cache, asked(message))
    assert cold.prompt.token_ids == warm.prompt.token_ids
    assert {s.miss for s in matched(first)} == {"absent"}
    assert first.report.reused_tokens < second.report.reused_tokens
    assert {s.miss for s in matched(second)} == {None}


def test_the_lesser_part_of_a_cold_passage_stays_in_its_message(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(store=MEMORY, retrieval={"chunk_tokens": 256})
    text = "".join(f"{word} number {i}; " for i, word in enumerate(["fox", "dog", "cat"] * 4))
    cache.ingest_texts([GivenDocument(id="a", title="A", text=text)])
    message = f"Explain {text[40:90]}, please."
    cold, _ = told(cache, asked(message, top_k=0))
    assert matched(cold) == [] and cold.report.computed_tokens == cold.report.prompt_tokens
    cache.warm()
    warm, _ = told(cache, asked(message + " Now?", top_k=0))
    (span,) = matched(warm)
    assert span.first_row > 30 and 32 <= span.tokens <= 50
    assert span.tier == "host" and span.document_id == warm.citations[0].document_id


def test_a_quoted_sentence_does_not_stop_retrieval_and_is_not_retrieved_twice(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(store=MEMORY, retrieval={"chunk_tokens": 128, "top_k": 3})
    texts = [f"The {name} sleeps at night under tree number {i}." for i, name in
             enumerate(["fox", "dog", "cat", "owl"])]  # fmt: skip
    cache.ingest_texts([GivenDocument(id=t[4:7], title="", text=t) for t in texts])
    answer, _ = told(cache, asked(f"What is meant by: {texts[1]} Tell me."))
    (span,) = matched(answer)
    assert not any("bring" in note for note in answer.report.notes)
    retrieved = [s for s in answer.report.spans if s.kind == "chunk" and not s.matched]
    assert len(retrieved) == 2 and span.chunk_id not in {s.chunk_id for s in retrieved}
    assert any("not put in twice" in note for note in answer.report.notes)
    shown = [c.chunk_id for c in answer.citations]
    assert sorted(shown) == sorted(s.chunk_id for s in (span, *retrieved))


def test_a_request_that_says_how_many_gets_them_beside_its_own(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    message = stuffed([c.text for c in known[:3]])
    answer, _ = told(cache, asked(message, top_k=2))
    assert not any("nothing was retrieved" in note for note in answer.report.notes)
    retrieved = {s.chunk_id for s in answer.report.spans if s.kind == "chunk" and not s.matched}
    assert retrieved.isdisjoint(c.chunk_id for c in known[:3])


def test_a_setting_turns_it_off_and_a_request_on(
    open_cache: Callable[..., ChunkCache], pages: Path
) -> None:
    cache = open_cache(store=MEMORY, retrieval={"match_messages": False})
    cache.ingest([pages])
    cache.warm()
    chunks = [c for c in cache.catalog.chunks("public", "default") if len(c.token_ids) >= 50][:3]
    message = stuffed([c.text for c in chunks])
    off, _ = told(cache, asked(message))
    assert matched(off) == []
    assert [s for s in off.report.spans if s.kind == "chunk"]  # retrieved as ever
    on, _ = told(cache, asked(message, match_messages=True))
    assert len(matched(on)) == 3


def test_passages_in_a_system_text_and_in_earlier_turns_are_found_too(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    system = Message(role="system", content=stuffed([known[0].text, known[1].text], "none yet"))
    turns = [
        Message(role="user", content=stuffed([known[2].text])),
        Message(role="assistant", content="At night."),
        Message(role="user", content=stuffed([known[3].text], "and who sleeps?")),
    ]
    request = AnswerRequest(messages=[system, *turns])
    answer, handle = told(cache, request)
    assert [s.chunk_id for s in matched(answer)] == [c.chunk_id for c in known[:4]]
    off = request.model_copy(
        update={"options": ChunkCacheOptions(match_messages=False), "top_k": 0}
    )
    assert handle.prompt.token_ids == told(cache, off)[1].prompt.token_ids
    whole = request.model_copy(update={"options": ChunkCacheOptions(budget=1.0)})
    full = off.model_copy(update={"options": ChunkCacheOptions(match_messages=False, mode="full")})
    assert float((logits(cache, whole) - logits(cache, full)).abs().max()) < 2e-4


def test_passages_of_earlier_turns_do_not_stop_retrieval(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    answer, _ = told(cache, asked(stuffed([known[0].text]), "At night.", "And cats?"))
    kinds = [(s.kind.value, s.matched) for s in answer.report.spans]
    first_matched = kinds.index(("chunk", True))
    assert ("chunk", False) in kinds[:first_matched]  # retrieved ones stand before the history


def test_the_history_is_read_from_an_exact_prefix_where_there_is_one(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    message = stuffed([c.text for c in known])
    first, _ = told(cache, asked(message, mode="exact", top_k=0))
    again, _ = told(cache, asked(message, first.text, "And cats?", top_k=0))
    assert {s.tier for s in matched(again)[:-1]} == {"prefix"}
    assert {s.rung for s in matched(again)[:-1]} == {Rung.EXACT}


def test_documents_of_an_earlier_request_are_served_but_nobody_is_told_whose_they_are(
    cache: ChunkCache,
) -> None:
    secret = "The quick brown fox is called Reynard by those who know him well, and jumps."
    given = GivenDocument(id="private", title="Private", text=secret, url="http://x.test/private")
    cache.ask("who?", documents=[given])
    answer, _ = told(cache, asked(stuffed([secret], "who?")))
    spans = matched(answer)
    assert sum(s.tokens for s in spans) > 50 and {s.tier for s in spans} == {"host"}
    assert {(s.chunk_id, s.document_id, s.title) for s in spans} == {(None, None, None)}
    assert answer.citations == [] and "rivate" not in answer.model_dump_json()


def test_documents_of_an_earlier_request_do_not_stop_retrieval(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    """They are forgotten sooner or later, and the prompt must not depend on it."""
    own = "The quick brown fox is called Reynard by those who know him well, and jumps."
    before, _ = told(cache, asked(stuffed([own], "cats?")))
    cache.ask("who?", documents=[GivenDocument(id="own", text=own)])
    after, _ = told(cache, asked(stuffed([own], "cats?")))
    assert matched(after) and not matched(before)
    assert after.report.prompt_tokens == before.report.prompt_tokens
    assert [c.chunk_id for c in after.citations] == [c.chunk_id for c in before.citations] != []


def test_another_tenant_is_told_nothing(cache: ChunkCache, known: list[Chunk]) -> None:
    message = stuffed([c.text for c in known])
    answer, _ = told(cache, asked(message, tenant="other"))
    assert matched(answer) == [] and answer.citations == []
    (note,) = answer.report.notes  # of its own collection, which has nothing
    assert note.startswith("no passage was found in default. Hint: ")
    assert answer.report.computed_tokens == answer.report.prompt_tokens


def test_a_removed_document_is_text_like_any_other(cache: ChunkCache, known: list[Chunk]) -> None:
    message = stuffed([c.text for c in known])
    assert len(matched(told(cache, asked(message))[0])) >= len(known)
    for document in cache.documents():
        cache.remove(document.document_id)
    answer, _ = told(cache, asked(message))
    assert matched(answer) == [] and answer.citations == []


def test_given_documents_stand_beside_passages_in_the_message(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    message = stuffed([c.text for c in known[:2]])
    given = [GivenDocument(id="g", text="Foxes sleep by day, and hunt at dusk.")]
    answer, _ = told(cache, asked(message, documents=given))
    kinds = [(s.title or s.chunk_id, s.matched) for s in answer.report.spans if s.kind == "chunk"]
    assert [m for _, m in kinds] == [False, True, True] and kinds[0][0] == "g#0"
    assert len(answer.citations) == 3


def test_every_row_of_a_recognised_prompt_is_accounted_for(
    cache: ChunkCache, known: list[Chunk]
) -> None:
    texts = [c.text for c in (*known, known[0], known[0])]
    texts[2] = texts[2][25:]  # cut in the middle
    for round_, policy in enumerate(["question", "deviation", "cfo", "first_k", "focused", "all"]):
        answer, _ = told(cache, asked(stuffed(texts, f"{policy}?"), policy=policy, budget=0.3))
        report = answer.report
        parts = report.reused_tokens + report.recomputed_tokens + report.computed_tokens
        assert parts == report.prompt_tokens == sum(s.tokens for s in report.spans), round_
        assert all(s.reused + s.recomputed + s.computed == s.tokens for s in report.spans)
        first = [s.first_row for s in matched(answer)]
        assert len(first) >= len(known) + 1 and len(answer.citations) == len(known)


def test_text_that_comes_again_is_served_where_that_is_asked_for(
    open_cache: Callable[..., ChunkCache],
) -> None:
    """As of a pipeline whose documents are its own, and as lmcache's bench permutes them."""
    cache = open_cache(store=MEMORY, retrieval={"learn_messages": True, "chunk_tokens": 128})
    texts = [
        f"Record {n} of the survey: found {n * 17} steps from the gate of {n * 3}, and measured "
        f"at {n * 13} and at {n * 11} by those who were there."
        for n in range(3, 7)
    ]
    orders = [(0, 1, 2, 3), (2, 0, 3, 1), (1, 3, 0, 2)]
    messages = [stuffed([texts[n] for n in order], f"and {order}?") for order in orders]
    first, second, third = (told(cache, asked(message))[0] for message in messages)
    assert matched(first) == []
    assert {s.miss for s in matched(second)} == {"absent"} and second.citations == []
    assert len(matched(third)) >= 3 and {s.miss for s in matched(third)} == {None}
    assert third.report.reused_tokens > third.report.prompt_tokens // 3
    full = logits(cache, asked(messages[2], mode="full", match_messages=False))
    assert float((logits(cache, asked(messages[2], budget=1.0)) - full).abs().max()) < 2e-4
