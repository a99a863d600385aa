"""What a report says of a span is true of its rows: whence they are, and why some are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkcache import ChunkCache
    from chunkcache.protocol import AnswerFinished, SpanReport

TEXTS = [f"{animal} sleep all day and hunt at night. " * 6 for animal in ("Cats", "Owls", "Bats")]


def check(answer: AnswerFinished) -> list[SpanReport]:
    """The chunks' spans, and that no label contradicts a count."""
    for span in answer.report.spans:
        if span.miss is None:
            assert (span.tier is None) == (span.reused + span.recomputed == 0), span
        else:
            assert span.tier == ("prefix" if span.reused else None), span
            assert span.computed + span.recomputed > 0, span
    return [span for span in answer.report.spans if span.kind == "chunk"]


def test_a_passage_that_a_prefix_holds_is_no_miss(cache: ChunkCache) -> None:
    for mode, label in {"exact": (None, None), "auto": ("prefix", None)}.items():
        spans = check(cache.ask("why?", documents=TEXTS, mode=mode, max_tokens=1))
        assert (spans[0].tier, spans[0].miss) == label
        assert spans[0].reused == (spans[0].tokens if spans[0].tier else 0)
        cache.holdings.clear("public")  # records, and not the pages of prefixes


def test_of_a_passage_that_a_prefix_holds_in_part_the_rest_is_a_miss(cache: ChunkCache) -> None:
    for mode, ending in {"exact": "a mouse", "auto": "a vole"}.items():
        text = "Owls hunt at night, and what they hunt for is " + ending
        (span,) = check(cache.ask("why?", documents=[text], mode=mode, max_tokens=1))
    assert (span.tier, span.miss) == ("prefix", "absent") and span.reused and span.computed


def test_labels_and_counts_agree_whatever_is_asked(cache: ChunkCache) -> None:
    wishes: list[dict[str, Any]] = [
        {}, {"budget": 0.0}, {"budget": 1.0}, {"mode": "exact"}, {"mode": "full"},
        {"policy": "deviation", "budget": 0.3},
    ]  # fmt: skip
    for wish in wishes:
        for texts in (TEXTS, TEXTS[::-1]):
            check(cache.ask("why?", documents=texts, max_tokens=1, **wish))
        cache.holdings.clear("public")
