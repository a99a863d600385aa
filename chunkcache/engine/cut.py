"""Passages inside messages: where a prompt's own tokens are those of a record. Pure.

Cutting changes no token: it only says of a run of them that its rows may be read from a chunk's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.chunk import Span, SpanKind
from chunkcache.engine.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.chunk import Chunk


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens `start..end` of the span of a kind: part of `passage_ids`, from `first_row` on.

    `chunk` is what to cite; None for a passage that is nobody's to cite.
    """

    kind: SpanKind
    start: int
    end: int
    passage_ids: tuple[int, ...]
    first_row: int
    chunk: Chunk | None = None


def cut_out(prompt: Prompt, cuts: Sequence[Cut]) -> Prompt:
    """The same prompt, its head, history and question cut up so that passages are chunk spans.

    The prompt's last token stays out of every passage: its row must run, for the logits.

    Args:
        prompt: with at most one span of each of those kinds.
        cuts: without overlap; their tokens are those of the prompt.
    """
    from_kind: dict[SpanKind, list[Cut]] = {}
    for cut in sorted(cuts, key=lambda cut: cut.start):
        from_kind.setdefault(cut.kind, []).append(cut)
    spans: list[Span] = []
    for span in prompt.spans:
        spans += _pieces(span, from_kind.get(span.kind, ()), prompt.num_tokens - 1)
    return Prompt(tuple(spans), prompt.head_is_canonical)


def _pieces(span: Span, cuts: Sequence[Cut], limit: int) -> Iterator[Span]:
    at = 0
    for cut in cuts:
        end = min(cut.end, limit - span.start)
        ids = span.token_ids[cut.start : end]
        assert ids == cut.passage_ids[cut.first_row : cut.first_row + len(ids)], "another passage"
        if at < cut.start:
            yield Span(span.kind, span.start + at, span.token_ids[at : cut.start])
        if ids:
            yield Span(
                SpanKind.CHUNK, span.start + cut.start, ids, cut.chunk,
                cut.passage_ids, cut.first_row,
            )  # fmt: skip
        at = max(cut.start, end)
    if not cuts:
        yield span
    elif at < len(span):
        yield Span(span.kind, span.start + at, span.token_ids[at:])


def row_of(text_ids: tuple[int, ...], passage_ids: tuple[int, ...]) -> int | None:
    """Where a chunk's own tokens begin in what it takes in a prompt; None if they are not there.

    >>> row_of((5, 6), (1, 2, 5, 6, 9))
    2
    """
    for row in range(len(passage_ids) - len(text_ids) + 1):
        if passage_ids[row : row + len(text_ids)] == text_ids:
            return row
    return None
