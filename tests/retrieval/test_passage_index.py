"""Runs of known texts in messages: what brute force finds is found, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.retrieval.passage_index import (
    MOST_PLACES,
    SHORTEST,
    WINDOW,
    PassageIndex,
    Run,
)

Texts = dict[int, np.ndarray]


def ids(tokens: Sequence[int]) -> np.ndarray:
    return np.array(tokens, np.uint32)


def fresh(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(50_000) for _ in range(length)]


def indexed(texts: Texts) -> PassageIndex:
    index = PassageIndex()
    index.add(list(texts), list(texts.values()))
    return index


def found(index: PassageIndex, texts: Texts, message: Sequence[int]) -> list[Run]:
    runs = index.find(ids(message), lambda entries: {e: texts[e] for e in entries if e in texts})
    for run in runs:
        for entry in run.entries:
            text = texts[entry]
            part = text[run.row : run.row + run.end - run.start]
            assert part.tolist() == list(message[run.start : run.end]), "not the same tokens"
    ends = [0, *(run.end for run in runs)]
    assert all(run.start >= end for run, end in zip(runs, ends, strict=False)), "runs overlap"
    return runs


def longest_common(message: Sequence[int], texts: Texts) -> int:
    """The twin: the longest run that a stretch of the message shares with any text, by force."""
    best = 0
    for text in map(np.ndarray.tolist, texts.values()):
        row = [0] * (len(text) + 1)
        for token in message:
            row = [0, *(row[j] + 1 if token == text[j] else 0 for j in range(len(text)))]
            best = max(best, *row)
    return best


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Texts, list[int]]:
    """Texts with shared beginnings and overlaps, and a message of whole, cut and fresh parts."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    boilerplate = fresh(rng, draw(st.integers(0, 50)))
    texts: Texts = {}
    for entry in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["own", "boilerplate", "overlap", "few words", "short"]))
        text = fresh(rng, draw(st.integers(1, 120)))
        if kind == "boilerplate":
            text = boilerplate + text
        elif kind == "overlap" and texts:
            text = texts[entry - 1].tolist()[-40:] + text
        elif kind == "few words":
            text = [rng.randrange(3) for _ in text]
        elif kind == "short":
            text = text[: rng.randrange(1, SHORTEST)]
        texts[entry] = ids(text)
    message: list[int] = []
    for _ in range(draw(st.integers(1, 6))):
        text = texts[draw(st.sampled_from(sorted(texts)))].tolist()
        kind = draw(st.sampled_from(["whole", "cut", "fresh", "changed"]))
        if kind == "fresh":
            text = fresh(rng, rng.randrange(1, 60))
        elif kind == "cut":
            text = text[rng.randrange(len(text)) :][: rng.randrange(1, 100)]
        elif kind == "changed":
            text[rng.randrange(len(text))] = 60_000
        message += text + fresh(rng, draw(st.sampled_from([0, 0, 1, 5])))
    return texts, message


@given(corpora())
@settings(max_examples=60, deadline=None)
def test_nothing_that_brute_force_finds_is_left(case: tuple[Texts, list[int]]) -> None:
    texts, message = case
    runs = found(indexed(texts), texts, message)
    begin = 0
    for end, after in [*((r.start, r.end) for r in runs), (len(message), 0)]:
        assert longest_common(message[begin:end], texts) < SHORTEST
        begin = after
    for run in runs:  # none could go on in its text, but for where the one before it ends
        assert run.end - run.start >= SHORTEST
        text = texts[run.entries[0]].tolist()
        behind = run.row + run.end - run.start
        assert not text[behind:] or message[run.end : run.end + 1] != text[behind : behind + 1]
        if run.row and run.start and run.start not in [r.end for r in runs]:
            assert message[run.start - 1] != text[run.row - 1]


def test_passages_between_fresh_text_are_found_whole() -> None:
    rng = random.Random(1)
    texts = {entry: ids(fresh(rng, 100 + entry)) for entry in range(40)}
    index, message, places = indexed(texts), fresh(rng, 30), []
    for entry in (3, 7, 3, 39):
        places.append((len(message), entry))
        message += [*texts[entry].tolist(), *fresh(rng, 2)]
    runs = found(index, texts, message)
    assert [(r.start, r.entries[0], r.row, r.end - r.start) for r in runs] == [
        (start, entry, 0, len(texts[entry])) for start, entry in places
    ]


def test_a_cut_passage_is_found_from_where_it_is_cut() -> None:
    rng = random.Random(2)
    texts = {5: ids(fresh(rng, 200))}
    message = [*fresh(rng, 9), *texts[5].tolist()[70:150], *fresh(rng, 9)]
    assert found(indexed(texts), texts, message) == [Run(9, 89, 70, (5,))]


def test_a_run_of_the_shortest_length_is_found_wherever_it_stands() -> None:
    rng = random.Random(3)
    texts = {0: ids(fresh(rng, 4 * WINDOW))}
    index = indexed(texts)
    for row in range(4 * WINDOW - SHORTEST + 1):
        message = [1, *texts[0].tolist()[row : row + SHORTEST], 2]
        assert found(index, texts, message) == [Run(1, 1 + SHORTEST, row, (0,))]
        assert found(index, texts, [*message[:SHORTEST], 2]) == []  # one token less


def test_boilerplate_of_many_texts_goes_to_the_one_that_follows_it() -> None:
    rng = random.Random(4)
    shared = fresh(rng, 3 * WINDOW)
    texts = {e: ids([*shared, *fresh(rng, 3 * WINDOW)]) for e in range(3 * MOST_PLACES)}
    index = indexed(texts)
    message = [*texts[29].tolist(), 7, 8]
    assert found(index, texts, message) == [Run(0, 6 * WINDOW, 0, (29,))]
    assert found(index, texts, shared) == []  # of so many, no one
    few = {entry: texts[entry] for entry in range(MOST_PLACES)}
    assert found(indexed(few), few, shared) == [Run(0, 3 * WINDOW, 0, (0,))]


def test_a_run_begins_where_the_one_before_it_ends() -> None:
    """Texts that overlap, as chunks with `overlap_tokens` do: what both have goes to the first."""
    rng = random.Random(8)
    first, both, second = (fresh(rng, 3 * WINDOW) for _ in range(3))
    texts = {0: ids([*first, *both]), 1: ids([*both, *second])}
    assert found(indexed(texts), texts, [*first, *both, *second]) == [
        Run(0, 6 * WINDOW, 0, (0,)), Run(6 * WINDOW, 9 * WINDOW, 3 * WINDOW, (1,)),
    ]  # fmt: skip


def test_copies_of_a_text_are_one_text_and_are_forgotten_one_by_one() -> None:
    rng = random.Random(5)
    text = ids(fresh(rng, 90))
    texts = dict.fromkeys(range(3 * MOST_PLACES), text)
    index = indexed(texts)
    assert len(index) == 3 * MOST_PLACES
    assert found(index, texts, text.tolist()) == [Run(0, 90, 0, tuple(texts))]
    index.discard([0, 1, 99])
    assert found(index, texts, text.tolist())[0].entries[0] == 2
    index.discard(list(texts))
    assert found(index, texts, text.tolist()) == [] and len(index) == 0


def test_texts_that_come_and_go_leave_those_that_stay() -> None:
    rng = random.Random(6)
    index, texts = PassageIndex(), Texts()
    for number in range(400):
        text = ids(fresh(rng, rng.randrange(1, 70)))
        texts[number] = text
        index.add([number], [text])
        if rng.random() < 0.7:
            gone = rng.choice(sorted(texts))
            del texts[gone]
            index.discard([gone])
    assert sorted(index.entries.tolist()) == sorted(texts)
    for entry, text in texts.items():
        runs = found(index, texts, [1, *text.tolist(), 2])
        assert [r.entries for r in runs] == ([(entry,)] if len(text) >= SHORTEST else [])
    many = sum(len(part) for part in index._parts)
    assert many <= 1.5 * sum(len(t) // WINDOW for t in texts.values()) + 64 * 5


def test_an_edited_text_is_found_after_many_edits() -> None:
    rng = random.Random(7)
    rest = {e: ids(fresh(rng, 40)) for e in range(2000)}
    index, body = indexed(rest), fresh(rng, 100)
    for edit in range(5 * MOST_PLACES):
        index.discard([9000 + edit - 1])
        body[50] = edit
        texts = {9000 + edit: ids(body)}
        index.add(list(texts), list(texts.values()))
        assert found(index, texts, body) == [Run(0, 100, 0, (9000 + edit,))]


def test_repetition_costs_no_more_than_it_is_long() -> None:
    """One word for ever: every window stands in too many places to say anything."""
    texts = {0: ids([5] * 1000), 1: ids([5, 6] * 500)}
    assert found(indexed(texts), texts, [5] * 50_000) == []


def test_a_message_of_fifty_thousand_tokens() -> None:
    rng = random.Random(8)
    texts = {e: ids(fresh(rng, 250)) for e in range(300)}
    message: list[int] = []
    for entry in rng.sample(sorted(texts), 190):
        message += [*texts[entry].tolist(), *fresh(rng, 13)]
    assert len(message) > 49_000
    runs = found(indexed(texts), texts, message)
    assert len(runs) == 190 and sum(r.end - r.start for r in runs) == 190 * 250


@pytest.mark.parametrize("length", [0, 1, WINDOW - 1, WINDOW, SHORTEST - 1])
def test_short_messages_and_texts_are_no_passages(length: int) -> None:
    rng = random.Random(9)
    texts = {0: ids(fresh(rng, length))}
    index = indexed(texts)
    assert found(index, texts, texts[0].tolist()) == []
    assert found(PassageIndex(), {}, [1] * length) == []


def test_a_text_that_is_gone_is_no_match() -> None:
    rng = random.Random(10)
    texts = {e: ids(fresh(rng, 50)) for e in range(2)}
    index = indexed(texts)
    message = [*texts[0].tolist(), *texts[1].tolist()]
    del texts[0]
    assert found(index, texts, message) == [Run(50, 100, 0, (1,))]
