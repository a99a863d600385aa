"""The service in process, on a tiny model: documents in, reported answers out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chunkcache import ChunkCache
from chunkcache.chunk import Rung
from chunkcache.errors import InvalidRequest, NotFound, ShuttingDown
from chunkcache.protocol import (
    AnswerDelta,
    AnswerFinished,
    AnswerRequest,
    AnswerStarted,
    ChunkCacheOptions,
    GivenDocument,
    Message,
)
from chunkcache.service.asking import Measure
from chunkcache.service.wishes import answer_request

TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " * 2 for i in range(4)]


def logits_of(cache: ChunkCache, question: str = "why?", **wishes: Any) -> torch.Tensor:
    handle = cache.start(answer_request(question, wishes), measure=Measure())
    list(handle.events())
    assert handle.outcome is not None
    return handle.outcome.first_logits


def tiers(answer: AnswerFinished) -> list[str | None]:
    return [s.tier for s in answer.report.spans if s.kind == "chunk"]


def misses(answer: AnswerFinished) -> list[str | None]:
    return [s.miss for s in answer.report.spans if s.kind == "chunk"]


def test_the_whole_way_from_files_to_a_cited_answer(cache: ChunkCache, pages: Path) -> None:
    report = cache.ingest([pages])
    assert (report.added, report.skipped, report.problems) == (3, 0, [])
    warmed = cache.warm()
    # pieces with the same text and title share one record
    assert 0 < warmed.computed == warmed.chunks <= report.chunks
    assert cache.warm().already_warm == warmed.chunks
    events = list(cache.stream("where do owls hunt?", top_k=2))
    assert isinstance(events[0], AnswerStarted) and isinstance(events[-1], AnswerFinished)
    text = "".join(e.text for e in events if isinstance(e, AnswerDelta))
    answer = events[-1]
    assert answer.text == text
    cited = answer.citations
    assert len(cited) == 2 and cited[0].title == "Owls"
    _, whole = cache.document_text(cited[0].document_id)
    assert whole[cited[0].start_char : cited[0].end_char] == cited[0].text
    assert tiers(answer) == ["disk", "disk"]  # warming fills the lowest tier
    assert tiers(cache.ask("where do owls hunt?", top_k=2)) == ["host", "host"]


def test_identical_passages_enter_a_prompt_once(cache: ChunkCache, tmp_path: Path) -> None:
    hunt = "Owls hunt at night."
    for name, text in {"a": hunt, "b": hunt, "c": "Owls rest."}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    cache.ingest([tmp_path / f"{name}.txt" for name in "abc"])
    assert len(cache.search("owls hunt at night", top_k=3)) == 3
    cited = cache.ask("owls hunt at night", top_k=2).citations
    assert sorted(citation.text for citation in cited) == ["Owls hunt at night.", "Owls rest."]


def test_a_miss_is_computed_served_and_stored_for_the_next_request(cache: ChunkCache) -> None:
    first = cache.ask("why?", documents=TEXTS)
    assert set(misses(first)) == {"absent"}
    assert first.report.reused_tokens == first.report.spans[0].reused  # the head alone
    second = cache.ask("why?", documents=TEXTS)
    assert all(miss is None for miss in misses(second))
    assert second.report.computed_tokens < first.report.computed_tokens
    reordered = cache.ask("why?", documents=TEXTS[::-1])
    assert all(miss is None for miss in misses(reordered))
    assert second.text == first.text


def test_records_survive_a_restart(open_cache: Callable[..., ChunkCache]) -> None:
    first = open_cache()
    answer = first.ask("why?", documents=TEXTS)
    first.close()
    again = open_cache().ask("why?", documents=TEXTS)
    assert set(tiers(again)) == {"disk"}
    assert again.text == answer.text


@pytest.mark.parametrize("policy", ["question", "deviation", "all"])
def test_repairing_everything_equals_full_recompute(cache: ChunkCache, policy: str) -> None:
    full = logits_of(cache, documents=TEXTS, mode="full")
    cache.ask("why?", documents=TEXTS)
    none = logits_of(cache, documents=TEXTS, policy="none")
    repaired = logits_of(cache, documents=TEXTS, policy=policy, budget=1.0)
    again = cache.ask("why?", documents=TEXTS, policy="none").report
    # rows repaired among a chunk's are no pages of a prefix, and not taken for some (decision 13)
    assert again.rung is Rung.REPAIRED and again.spans[0].tier == "prefix"
    assert float((full - repaired).abs().max()) < 2e-4
    assert float((full - none).abs().max()) > 1e-2


def test_the_report_accounts_for_every_prompt_token(cache: ChunkCache) -> None:
    for wishes in (
        {}, {"budget": 0.0}, {"budget": 1.0}, {"mode": "exact"}, {"mode": "full"},
        {"policy": "cfo", "budget": 0.5}, {"policy": "deviation", "budget": 0.2},
    ):  # fmt: skip
        for _ in range(2):
            report = cache.ask("why?", documents=TEXTS, **wishes).report
            parts = report.reused_tokens + report.recomputed_tokens + report.computed_tokens
            assert parts == report.prompt_tokens
            assert sum(s.tokens for s in report.spans) == report.prompt_tokens
            for span in report.spans:
                assert span.reused + span.recomputed + span.computed == span.tokens
                assert span.recomputed == len(span.recomputed_positions)


def test_rungs_say_what_happened(cache: ChunkCache) -> None:
    assert cache.ask("why?", documents=TEXTS, mode="full").report.rung is Rung.FULL
    cache.ask("why?", documents=TEXTS)
    repaired = cache.ask("why?", documents=TEXTS[::-1], budget=0.1).report
    assert repaired.rung is Rung.REPAIRED
    chunks = [s for s in repaired.spans if s.kind == "chunk"]
    assert chunks[0].rung is Rung.EXACT and chunks[1].rung is Rung.REPAIRED
    exact = cache.ask("why?", documents=TEXTS[::-1], mode="exact").report
    assert exact.rung in {Rung.EXACT, Rung.FULL} and exact.policy == "exact"
    full = cache.ask("why?", documents=TEXTS, mode="full").report
    assert full.reused_tokens == 0 and full.policy == "full"


def test_full_mode_neither_takes_nor_leaves_a_prefix(cache: ChunkCache) -> None:
    for _ in range(2):
        assert cache.ask("why?", documents=TEXTS, mode="full").report.reused_tokens == 0
    first = cache.ask("why?", documents=TEXTS, mode="exact").report
    assert first.reused_tokens == 0
    assert cache.ask("why?", documents=TEXTS, mode="exact").report.reused_tokens > 0


def test_tenants_share_nothing(cache: ChunkCache) -> None:
    cache.ask("why?", documents=TEXTS, tenant="a")
    other = cache.ask("why?", documents=TEXTS, tenant="b")
    assert set(misses(other)) == {"absent"}
    own = cache.ask("why?", documents=TEXTS, tenant="a")
    assert set(misses(own)) == {None}
    assert own.text == other.text


def test_an_edited_document_is_answered_from_its_new_text(cache: ChunkCache, pages: Path) -> None:
    cache.ingest([pages])
    cache.warm()
    (pages / "owls.md").write_text("# Owls\n\nOwls hunt in the morning, say the editors.")
    report = cache.ingest([pages])
    assert (report.updated, report.unchanged) == (1, 2)
    answer = cache.ask("when do owls hunt?", top_k=1)
    assert "morning" in answer.citations[0].text
    assert misses(answer) == ["absent"]
    assert cache.warm().computed <= 1


def test_a_removed_document_is_gone_at_once(cache: ChunkCache, pages: Path) -> None:
    cache.ingest([pages])
    owls = next(d for d in cache.documents() if d.title == "Owls")
    assert cache.remove(owls.document_id) and not cache.remove(owls.document_id)
    cited = cache.ask("when do owls hunt?", top_k=3).citations
    assert all(c.title != "Owls" for c in cited)


def test_no_documents_no_question_words_and_no_hits(cache: ChunkCache) -> None:
    for wishes in ({"documents": []}, {"top_k": 0}, {}):
        answer = cache.ask("why?", **wishes)
        assert answer.citations == [] and answer.report.rung in {Rung.FULL, Rung.EXACT}
    assert cache.ask("  ", max_tokens=1).report.prompt_tokens > 0


def test_one_token_documents_duplicates_and_special_tokens(cache: ChunkCache) -> None:
    odd = ["a", "a", "<|im_end|><|im_start|>system", "é漢字🙂"]
    for _ in range(2):
        answer = cache.ask("why?", documents=odd, budget=1.0, policy="all")
        assert len(answer.citations) == 4
    full = logits_of(cache, documents=odd, mode="full")
    assert float((full - logits_of(cache, documents=odd, policy="all")).abs().max()) < 2e-4


def test_a_conversation_keeps_its_turns(cache: ChunkCache) -> None:
    turns = [
        Message(role="user", content="first?"),
        Message(role="assistant", content="an answer"),
        Message(role="user", content="and then?"),
    ]
    documents = [GivenDocument(text=t) for t in TEXTS]
    answer = cache.ask(AnswerRequest(messages=turns, documents=documents))
    assert [s.kind for s in answer.report.spans].count("history") == 1
    with pytest.raises(InvalidRequest, match="user"):
        cache.ask(AnswerRequest(messages=turns[:2]))


def test_with_the_gate_off_nothing_approximate_is_served(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(model={"gate": "off"})
    for _ in range(2):
        answer = cache.ask("why?", documents=TEXTS)
        assert answer.report.rung is not Rung.REPAIRED
        assert any("gate" in note for note in answer.report.notes)
    assert cache.warm().stopped_reason


def test_unknown_collections_and_documents_are_named(cache: ChunkCache) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        cache.ask("why?", collection="nowhere")
    with pytest.raises(NotFound, match="doc-none"):
        cache.document_text("doc-none")


def test_draining_admits_nothing_and_closing_twice_is_fine(cache: ChunkCache) -> None:
    cache.ask("why?", documents=TEXTS)
    assert cache.health()["status"] == "ok"
    cache.drain(5.0)
    assert cache.health()["status"] == "draining"
    with pytest.raises(ShuttingDown):
        cache.ask("why?")
    cache.close()
    cache.close()
    with pytest.raises(ShuttingDown):
        _ = cache.runtime


def test_closing_the_event_stream_cancels_the_answer(cache: ChunkCache) -> None:
    events = cache.stream("why?", documents=TEXTS, max_tokens=2000)
    next(events)
    next(events)
    events.close()
    cache.drain(10.0)
    assert cache.runtime.engine.unfinished == 0


def test_metrics_add_up(cache: ChunkCache) -> None:
    cache.ask("why?", documents=TEXTS)
    cache.ask("why?", documents=TEXTS)
    text = cache.metrics.render().decode()
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    queries = values['chunkcache_chunk_queries_total{tier="host"}']
    hits = values['chunkcache_chunk_hits_total{tier="host"}']
    missed = values['chunkcache_chunk_misses_total{reason="absent"}']
    assert queries == 8 and hits == 4 and missed == 4
    assert values['chunkcache_requests_total{outcome="ok"}'] == 2
    kinds = ("reused", "recomputed", "computed")
    total = sum(values[f'chunkcache_tokens_total{{kind="{k}"}}'] for k in kinds)
    assert total == 2 * cache.ask("why?", documents=TEXTS).report.prompt_tokens


@pytest.mark.parametrize(
    "wishes",
    [
        {"mode": "full"}, {"mode": "exact"}, {"policy": "none"}, {"policy": "first_k"},
        {"policy": "question", "budget": 1.0}, {"policy": "question", "budget": 0.15},
        {"policy": "deviation", "budget": 0.5}, {"policy": "gradual", "budget": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_no_time_is_told_twice_and_none_is_left_out(
    cache: ChunkCache, wishes: dict[str, Any]
) -> None:
    for _ in range(2):  # passages computed first, then found
        timings = cache.ask("why?", documents=TEXTS, **wishes).report.timings.model_dump()
        ttft_ms, total_ms = timings.pop("ttft_ms"), timings.pop("total_ms")
        timings.pop("planned_ms")
        assert sum(timings.values()) == pytest.approx(ttft_ms, rel=0, abs=1e-3)
        assert all(part_ms >= 0 for part_ms in timings.values()) and ttft_ms <= total_ms


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"mode": "magic"}, "mode"), ({"budget": 1.5}, "budget"), ({"policy": "x"}, "policy"),
        ({"temperature": -1}, "temperature"), ({"top_k": 99}, "top_k"), ({"colour": 1}, "colour"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)  # fmt: skip
def test_bad_wishes_are_named(cache: ChunkCache, wish: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        cache.ask("why?", **wish)


def test_born_after_passages_every_chunk_is_approximate_and_all_of_them_repairable(
    open_cache: Callable[..., ChunkCache], tmp_path: Path
) -> None:
    head = open_cache()
    passages = open_cache(home=tmp_path / "other", prompt={"born_after": "passages"})
    full = logits_of(passages, documents=TEXTS, mode="full")
    assert torch.equal(full, logits_of(head, documents=TEXTS, mode="full"))
    drift = {}
    for cache in (head, passages):
        cache.ask("why?", documents=TEXTS)
        drift[cache] = (full - logits_of(cache, documents=TEXTS, policy="none")).abs().max()
        report = cache.ask("why?", documents=TEXTS, policy="none").report
        rungs = [s.rung for s in report.spans if s.kind == "chunk"]
        assert rungs[0] is (Rung.EXACT if cache is head else Rung.REPAIRED)
        assert set(rungs[1:]) == {Rung.REPAIRED}
    assert float(drift[head]) > 1e-2 and float(drift[passages]) > 1e-2
    assert drift[head] != drift[passages]
    repaired = logits_of(passages, documents=TEXTS, policy="question", budget=1.0)
    assert float((full - repaired).abs().max()) < 2e-4


def test_records_born_in_different_contexts_are_never_mistaken(
    open_cache: Callable[..., ChunkCache],
) -> None:
    first = open_cache()
    first.ask("why?", documents=TEXTS)
    first.close()
    again = open_cache(prompt={"born_after": "passages"}).ask("why?", documents=TEXTS)
    assert set(misses(again)) == {"absent"}


def numbers(answer: AnswerFinished) -> list[int]:
    """Which of `TEXTS` stand in the prompt, in its order."""
    return [int(citation.text.removeprefix("Passage ")[0]) for citation in answer.citations]


def test_a_cache_friendly_order_shares_what_an_exact_answer_left(cache: ChunkCache) -> None:
    first = cache.ask("why?", documents=TEXTS[:3], mode="exact")
    turned = [TEXTS[2], TEXTS[0], TEXTS[3], TEXTS[1]]
    friendly = cache.ask("why?", documents=turned, mode="exact", order="cache_friendly")
    assert numbers(friendly) == [0, 1, 2, 3]
    assert any("order of an earlier" in note for note in friendly.report.notes)
    assert friendly.report.reused_tokens >= first.report.prompt_tokens // 2
    # the same answer as in that order from the start
    again = logits_of(cache, documents=turned, mode="exact", order="cache_friendly")
    assert torch.allclose(again, logits_of(cache, documents=TEXTS, mode="full"), atol=2e-4)
    as_given = cache.ask("why?", documents=turned, mode="exact")
    assert numbers(as_given) == [2, 0, 3, 1] and not as_given.report.notes
    assert as_given.report.reused_tokens < friendly.report.reused_tokens


def test_only_exact_answers_leave_an_order(cache: ChunkCache) -> None:
    cache.ask("why?", documents=TEXTS[:3], budget=0.0)
    cache.ask("why?", documents=TEXTS[:3], mode="full")
    turned = [TEXTS[2], TEXTS[0], TEXTS[1]]
    asked = cache.ask("why?", documents=turned, order="cache_friendly")
    assert numbers(asked) == [2, 0, 1]
    assert not any("order of an earlier" in note for note in asked.report.notes)
    cache.ask("why?", documents=TEXTS[:3], policy="all")
    asked = cache.ask("why?", documents=turned, order="cache_friendly")
    assert numbers(asked) == [0, 1, 2]


def test_an_order_under_another_head_is_not_taken(cache: ChunkCache) -> None:
    cache.ask("why?", documents=TEXTS[:3], mode="exact")
    documents = [GivenDocument(text=TEXTS[i]) for i in (2, 0, 1)]
    asked = AnswerRequest(
        messages=[Message(role="system", content="Rhyme."), Message(role="user", content="why?")],
        documents=documents,
        options=ChunkCacheOptions(mode="exact", order="cache_friendly"),
    )
    assert numbers(cache.ask(asked)) == [2, 0, 1]


def test_without_a_prefix_cache_no_order_is_better_than_another(
    tiny_settings: Callable[..., Any],
) -> None:
    with ChunkCache(tiny_settings(engine={"prefix_cache": False})) as cache:
        cache.ask("why?", documents=TEXTS[:3], mode="exact")
        turned = [TEXTS[2], TEXTS[0], TEXTS[1]]
        asked = cache.ask("why?", documents=turned, mode="exact", order="cache_friendly")
        assert numbers(asked) == [2, 0, 1] and not asked.report.notes
