"""Text that comes again in messages becomes a passage; what only begins alike does not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from chunkcache.retrieval.repeated_texts import LEAST, RepeatedTexts

PIECE = 100


def words(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(50_000) for _ in range(length)]


def ids(*parts: list[int]) -> np.ndarray:
    return np.array([token for part in parts for token in part], np.uint32)


@pytest.fixture
def seen() -> RepeatedTexts:
    return RepeatedTexts(PIECE)


def test_passages_in_another_order_are_taken_whole(seen: RepeatedTexts) -> None:
    first, second, third = (words(n, 90) for n in (1, 2, 3))
    head = words(9, 20)
    assert seen.take(ids(head, first, second, third, words(10, 8)), []) == []
    message = ids(head, third, first, second, words(11, 12))
    # the first two were neighbours before as well, so nothing parts them but their length
    assert seen.take(message, []) == [(20, 110), (110, 200), (200, 290)]


def test_a_shared_beginning_is_the_prefix_caches(seen: RepeatedTexts) -> None:
    shared = words(1, 150)
    assert seen.take(ids(shared, words(2, 40)), []) == []
    assert seen.take(ids(shared, words(3, 40)), []) == []
    moved = ids(words(4, 70), shared)
    assert seen.take(moved, []) == [(70, 145), (145, 220)]


def test_what_is_known_is_neither_taken_nor_remembered(seen: RepeatedTexts) -> None:
    known, other = words(1, 90), words(2, 90)
    for number in range(3):
        message = ids(words(10 + number, 10), known, other)
        assert seen.take(message, [(10, 100)]) == ([(100, 190)] if number else [])
    assert seen.take(ids(words(20, 10), known), []) == []


def test_short_repetitions_are_left(seen: RepeatedTexts) -> None:
    phrase = words(1, LEAST - 1)
    for number in range(3):
        assert seen.take(ids(words(10 + number, 80), phrase, words(20 + number, 80)), []) == []


def test_a_long_repetition_is_cut_into_pieces_that_are_taken_alike(seen: RepeatedTexts) -> None:
    text = words(1, 5 * PIECE + 3)
    assert seen.take(ids(words(2, 30), text), []) == []
    pieces = seen.take(ids(words(3, 70), text), [])
    assert [end - start for start, end in pieces] == [83, 84, 84, 84, 84, 84]
    assert pieces[0][0] == 70 and pieces[-1][1] == 70 + len(text)


def test_old_messages_are_forgotten(seen: RepeatedTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chunkcache.retrieval.repeated_texts._SEEN_TOKENS", 1000)
    text = words(1, 90)
    seen.take(ids(words(2, 10), text), [])
    for number in range(20):
        seen.take(ids(words(100 + number, 100)), [])
    assert seen.take(ids(words(3, 20), text), []) == []
    assert seen.size_bytes < 16_000


def test_a_text_too_long_to_be_remembered_pushes_no_other_out(
    seen: RepeatedTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.repeated_texts._SEEN_TOKENS", 1000)
    text = words(1, 90)
    seen.take(ids(words(2, 10), text), [])
    seen.take(ids(words(3, 1001)), [])
    assert seen.take(ids(words(4, 20), text), []) == [(20, 110)]
