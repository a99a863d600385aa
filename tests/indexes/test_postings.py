"""Postings: compact, merged, pruned, and what a term has in them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache_indexes.postings import Postings, appended

TEXTS = st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=8)


def postings_of(texts: list[list[int]], first_row: int = 0) -> Postings:
    return Postings.of([np.array(text, np.int64) for text in texts], first_row)


def held(postings: Postings) -> dict[int, dict[int, int]]:
    """Rows and counts of each term, none left out."""
    found = {}
    for term in range(7):
        rows, counts = postings.of_term(term)
        assert rows.tolist() == sorted(rows.tolist())
        found[term] = dict(zip(rows.tolist(), counts.tolist(), strict=True))
    return found


def counted(texts: dict[int, list[int]]) -> dict[int, dict[int, int]]:
    """The twin: by counting."""
    counters = {row: Counter(text) for row, text in texts.items()}
    return {t: {row: c[t] for row, c in counters.items() if c[t]} for t in range(7)}


@given(TEXTS, st.integers(1, 3), st.data())
@settings(max_examples=40)
def test_parts_merged_and_pruned_hold_what_counting_finds(
    texts: list[list[int]], step: int, data: st.DataObject
) -> None:
    parts: list[Postings] = []
    for first in range(0, len(texts), step):
        parts = appended(parts, postings_of(texts[first : first + step], first))
    whole = Postings.empty()
    for part in reversed(parts):
        whole = part.followed_by(whole)
    assert held(whole) == counted(dict(enumerate(texts)))
    kept = np.array([data.draw(st.booleans()) for _ in texts], np.bool_)
    left = [text for text, stays in zip(texts, kept, strict=True) if stays]
    pruned = whole.of_rows(kept)
    assert held(pruned) == counted(dict(enumerate(left)))
    assert pruned.terms.tolist() == sorted({term for text in left for term in text})


def test_counts_beyond_two_bytes_are_exact_and_others_take_two() -> None:
    few, many = postings_of([[1, 1, 2]]), postings_of([[1] * 70_000 + [2]], first_row=1)
    assert (few.counts.dtype, few.rows.dtype) == (np.uint16, np.uint32)
    both = few.followed_by(many)
    assert held(both)[1] == {0: 2, 1: 70_000}
    assert held(both.of_rows(np.array([False, True])))[1] == {0: 70_000}
