"""Passages cut out of messages: no token changes, and every part says what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.chunk import Chunk, Span, SpanKind
from chunkcache.engine.cut import Cut, cut_out, row_of
from chunkcache.engine.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE, CLOSE = (900, 901), (902,)
KINDS = (SpanKind.HEAD, SpanKind.HISTORY, SpanKind.QUESTION)


def prompt_of(pieces: Sequence[tuple[SpanKind, Sequence[int]]]) -> Prompt:
    spans, start = [], 0
    for kind, ids in pieces:
        spans.append(Span(kind, start, tuple(ids)))
        start += len(ids)
    return Prompt(tuple(spans), head_is_canonical=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Prompt, list[Cut]]:
    pieces, cuts, token = [], [], 0
    for kind in (SpanKind.HEAD, SpanKind.CHUNK, SpanKind.HISTORY, SpanKind.QUESTION):
        ids: list[int] = []
        for _ in range(draw(st.integers(1, 4)) if kind is not SpanKind.CHUNK else 1):
            part = list(range(token, token + draw(st.integers(1, 9))))
            token += len(part)
            if kind is not SpanKind.CHUNK and draw(st.booleans()):
                before = tuple(range(700, 700 + draw(st.integers(0, 5))))
                whole = (*TITLE, *before, *part, *draw(st.sampled_from([(), (777,)])), *CLOSE)
                chunk = draw(st.sampled_from([None, Chunk(f"c{token}", (), "")]))
                start = len(ids)
                first = len(TITLE) + len(before)
                cuts.append(Cut(kind, start, start + len(part), whole, first, chunk))
            ids += part
        pieces.append((kind, ids))
    return prompt_of(pieces), draw(st.permutations(cuts))


@given(cases())
@settings(max_examples=200, deadline=None)
def test_a_cut_prompt_is_the_same_prompt(case: tuple[Prompt, list[Cut]]) -> None:
    prompt, cuts = case
    cut = cut_out(prompt, cuts)
    assert cut.token_ids == prompt.token_ids
    assert [s.start for s in cut.spans] == [0, *(s.end for s in cut.spans[:-1])]
    assert all(len(s) for s in cut.spans)
    assert cut.spans[-1].kind is SpanKind.QUESTION  # its last row runs
    assert cut.question_start == cut.spans[-1].start
    passages = [s for s in cut.spans if s.passage_ids is not None]
    for span in passages:
        assert span.kind is SpanKind.CHUNK
        rows = slice(span.first_row, span.first_row + len(span))
        assert span.record_ids[rows] == span.token_ids
    lost = sum(c.end - c.start for c in cuts) - sum(map(len, passages))
    assert lost in {0, 1}  # the prompt's last token is in no passage
    owned = {c.chunk for c in cuts}
    assert {s.chunk for s in passages} <= owned


def test_between_passages_stands_what_stood_there() -> None:
    prompt = prompt_of([(SpanKind.HEAD, [1, 2]), (SpanKind.QUESTION, range(10, 30))])
    whole = tuple(range(12, 22))
    cuts = [
        Cut(SpanKind.QUESTION, 2, 6, whole, 0),
        Cut(SpanKind.QUESTION, 6, 9, whole, 4),
        Cut(SpanKind.QUESTION, 11, 12, whole, 9),
    ]
    cut = cut_out(prompt, cuts)
    assert [(s.kind.value, s.start, len(s), s.first_row) for s in cut.spans] == [
        ("head", 0, 2, 0), ("question", 2, 2, 0), ("chunk", 4, 4, 0), ("chunk", 8, 3, 4),
        ("question", 11, 2, 0), ("chunk", 13, 1, 9), ("question", 14, 8, 0),
    ]  # fmt: skip
    assert cut.question_start == 14


def test_a_prompt_without_passages_is_left_as_it_is() -> None:
    prompt = prompt_of([(SpanKind.HEAD, [1]), (SpanKind.QUESTION, [2, 3])])
    assert cut_out(prompt, []) == prompt


def test_tokens_of_another_passage_are_a_fault_of_ours() -> None:
    prompt = prompt_of([(SpanKind.QUESTION, [1, 2, 3, 4])])
    with pytest.raises(AssertionError, match="another passage"):
        cut_out(prompt, [Cut(SpanKind.QUESTION, 1, 3, (2, 4), 0)])


def test_a_text_is_found_in_what_its_chunk_takes_in_a_prompt() -> None:
    assert row_of((5, 6), (*TITLE, 5, 6, *CLOSE)) == 2
    assert row_of((5, 6), (5, 6)) == 0
    assert row_of((5, 6), (5, 7, 6)) is None
    assert row_of((1, 2, 3), (1, 2)) is None
