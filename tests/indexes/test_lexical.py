"""BM25: the words, the scores, the changes."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache_indexes.lexical import LexicalIndex, joint_scores, words_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  --- ... \n", []),
        ("The END.", ["the", "end"]),
        ("os.path.join(a)", ["os.path.join", "os.path", "path.join", "os", "path", "join", "a"]),
        ("json.dumps", ["json.dumps", "json", "dumps"]),
        ("max_file_bytes", ["max_file_bytes", "max", "file", "bytes"]),
        ("__init__", ["__init__", "init"]),
        ("_private a_", ["_private", "private", "a_", "a"]),
        ("std::vector<int>", ["std::vector", "std", "vector", "int"]),
        ("pool.max_size=5", ["pool.max_size", "pool", "max_size", "max", "size", "5"]),
        (r"max\_pool\_size", ["max_pool_size", "max", "pool", "size"]),
        ("C++, C# #1", ["c++", "c", "c#", "c", "1"]),
        ("_" * 9, []),
        ("stdin->fd", ["stdin->fd", "stdin", "fd"]),
        ("--top-k 5", ["top-k", "top", "k", "5"]),
        ("/usr/bin", ["usr/bin", "usr", "bin"]),
        ("HnswIndex", ["hnswindex", "hnsw", "index"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("sha256", ["sha256"]),
        ("Straße ﬁne", ["strasse", "fine"]),
        ("日本語", ["日本", "本語"]),
        ("語", ["語"]),
        ("GPU入門", ["gpu", "入門"]),
        ("don't", ["don", "t"]),
    ],
)
def test_words_of(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=200)
def test_no_text_breaks_the_word_rule(text: str) -> None:
    assert all(word and "\n" not in word for word in words_of(text))


def filled(*texts: str) -> LexicalIndex:
    index = LexicalIndex()
    index.add(range(10, 10 + len(texts)), texts)
    return index


def test_identifiers_are_found_by_whole_and_by_part() -> None:
    index = filled(
        "Join parts with os.path.join, which adds separators.",
        "The path to the summit is steep; join us.",
        "Serialise with json.dumps(value).",
        "JSON is a format. The truck dumps sand.",
    )
    assert index.search("os.path.join", 4).ids[0] == 10
    assert index.search("json.dumps", 4).ids[0] == 12
    assert set(index.search("dumps", 4).ids.tolist()) == {12, 13}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("max_pool_size", 10),
        ("std::vector", 11),
        ("__init__", 12),
        ("C++", 13),
        ("boost::multi_index", 14),
        ("multi_index_container", 14),
    ],
)
def test_a_name_is_found_exactly_wherever_it_stands(name: str, place: int) -> None:
    """Texts that only have a name's parts, and have them more often, come after it."""
    parts = ["The pool size, at most: max size of the pool, pool size max.",
             "A vector of std deviations; std vector, vector std.",
             "init, the init of init.", "C, and C again: C.",
             "boost the multi index; index multi boost; container of a multi index."]  # fmt: skip
    index = filled(
        "Set `pool.max_pool_size=5` or min_pool_size/max_pool_size there and nowhere else at all.",
        "It returns `std::vector<std::string>::iterator` and never anything else, as was said.",
        "See `Task.__init__(self)` for what is given to it when it is made, and by whom and why.",
        "Written in C++17, C++ for short, as is most of what it stands on and is used with.",
        "Use boost::multi_index::multi_index_container<T> where one order is not enough for you.",
    )
    index.add(range(50, 50 + len(parts)), parts)
    assert index.search(name, 10).ids[0] == place


def test_scores_are_those_of_the_formula() -> None:
    texts = ["red red blue", "blue green", "green green green yellow", "white"]
    index = filled(*texts)
    hits = index.search("red green", 10)
    lengths = [len(text.split()) for text in texts]
    mean = sum(lengths) / len(lengths)

    def weight(word: str, place: int) -> float:
        frequency = texts[place].split().count(word)
        having = sum(word in text.split() for text in texts)
        rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        saturation = 1.2 * (1 - 0.75 + 0.75 * lengths[place] / mean)
        return rarity * frequency / (frequency + saturation)

    expected = {10 + p: weight("red", p) + weight("green", p) for p in range(3)}
    assert dict(zip(hits.ids.tolist(), hits.scores.tolist(), strict=True)) == pytest.approx(
        expected, rel=1e-5
    )
    assert hits.scores.tolist() == sorted(hits.scores.tolist(), reverse=True)


def test_scores_are_those_of_bm25s() -> None:
    """The slow twin, over texts that came and went in parts."""
    draw = np.random.default_rng(0)
    words = [f"w{n}" for n in range(60)]
    texts = [" ".join(draw.choice(words, draw.integers(0, 30))) for _ in range(400)]
    index = LexicalIndex()
    for start in range(0, 400, 37):
        part = texts[start : start + 37]
        index.add(range(start, start + len(part)), part)
    gone = draw.choice(400, 60, replace=False)
    index.remove(gone)
    left = np.setdiff1d(np.arange(400), gone)
    twin = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    twin.index([texts[n].split() for n in left], show_progress=False)
    for query in ("w0", "w1 w2 w3", " ".join(words)):
        expected = twin.get_scores(query.split())
        found = index.search(query, 400)
        assert dict(zip(found.ids.tolist(), found.scores.tolist(), strict=True)) == pytest.approx(
            {int(n): float(s) for n, s in zip(left, expected, strict=True) if s > 0}, rel=1e-5
        )


def test_rows_of_removed_texts_are_forgotten_when_they_are_many() -> None:
    index = filled(*(f"common w{n}" for n in range(900)))
    index.remove(range(10, 260))
    assert len(index._ids) == 900  # not yet worth it
    index.remove(range(260, 360))
    assert len(index._ids) == len(index) == 550
    index.add([5], ["common w1"])
    assert index.search("w1", 9).ids.tolist() == [5]
    assert index.search("w899", 9).ids.tolist() == [909]
    assert len(index.search("common", 999).ids) == 551
    assert index.remove(index.ids) == 551
    assert len(index) == 0 and index.search("common", 9).ids.tolist() == []


def test_adding_few_texts_to_many_touches_few() -> None:
    """What is there already is neither copied nor weighed again."""
    index = filled(*(f"common w{n}" for n in range(500)))
    many = index._parts[0]
    for n in range(8):
        index.add([n], [f"common new{n}"])
        assert index._parts[0] is many
    assert index.search("common", 999).ids.tolist() == [*range(8), *range(10, 510)]


@given(
    st.lists(st.lists(st.sampled_from(["red", "blue", "os.path", "x"]), max_size=6), max_size=9),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=30)
def test_parts_of_a_corpus_score_as_the_whole(texts: list[list[str]], cut: int) -> None:
    written = [" ".join(words) for words in texts]
    whole, query = filled(*written), "blue path os.path none"
    expected = whole.search(query, 99)
    parts, found = [filled(*written[:cut], "blue and gone"), filled(*written[cut:])], {}
    parts[0].remove([10 + len(written[:cut])])
    hits = [part.search(query, 99).ids.tolist() for part in parts]
    counts = [part.count(query, ids) for part, ids in zip(parts, hits, strict=True)]
    for shift, ids, scores in zip((0, cut), hits, joint_scores(counts), strict=True):
        found |= dict(zip((i + shift for i in ids), scores.tolist(), strict=True))
    assert found == pytest.approx(
        dict(zip(expected.ids.tolist(), expected.scores.tolist(), strict=True)), rel=1e-5
    )


def test_texts_without_a_common_word_are_not_hits() -> None:
    index = filled("one two", "three", "")
    assert index.search("two", 9).ids.tolist() == [10]
    assert index.search("four", 9).ids.tolist() == []
    assert index.search("", 9).ids.tolist() == []


def test_equal_scores_are_ordered_by_id_and_cut_at_k() -> None:
    assert filled(*["same words"] * 5).search("words", 3).ids.tolist() == [10, 11, 12]


@pytest.mark.parametrize("texts", [(), ("",), ("", "...")])
def test_an_index_without_words_finds_nothing(texts: tuple[str, ...], tmp_path: Path) -> None:
    index = filled(*texts)
    assert index.search("any", 3).ids.tolist() == []
    index.save(tmp_path / "x")
    assert LexicalIndex.load(tmp_path / "x").ids.tolist() == index.ids.tolist()


def test_changes_give_what_building_afresh_gives(tmp_path: Path) -> None:
    """Incremental changes against the slow twin: a new index over the texts that are left."""
    texts = {i: f"word{i % 3} common os.path item{i}" for i in range(12)}
    index = LexicalIndex()
    index.add(list(texts), list(texts.values()))
    assert index.search("word1", 9).ids.tolist() == [1, 4, 7, 10]
    assert index.remove([1, 5, 99]) == 2
    assert index.search("word1", 9).ids.tolist() == [4, 7, 10]
    index.add([20], ["word1 word1 fresh"])
    left = {**{i: t for i, t in texts.items() if i not in (1, 5)}, 20: "word1 word1 fresh"}
    fresh = LexicalIndex()
    fresh.add(list(left), list(left.values()))
    index.save(tmp_path / "x")
    for changed in (index, LexicalIndex.load(tmp_path / "x")):
        assert len(changed) == 11
        for query in ("word1", "common", "fresh item3", "os.path", "item5"):
            mine, theirs = changed.search(query, 20), fresh.search(query, 20)
            assert mine.ids.tolist() == theirs.ids.tolist()
            assert mine.scores.tolist() == pytest.approx(theirs.scores.tolist())


def test_scores_are_the_same_bits_however_the_index_came_about(tmp_path: Path) -> None:
    """Built in one piece, in another order, by changes, or loaded: words have other numbers."""
    words = [f"w{n}" for n in range(12)]
    texts = {i: " ".join(words[(i * k) % 12] for k in range(1, 9)) for i in range(80)}
    query = " ".join(reversed(words))

    def built(order: list[int], step: int) -> LexicalIndex:
        index = LexicalIndex()
        for start in range(0, len(order), step):
            some = order[start : start + step]
            index.add(some, [texts[i] for i in some])
        return index

    straight, changed = built(list(range(80)), 80), built(list(range(79, -1, -1)), 7)
    changed.add([99], ["gone w1 w2"])
    changed.remove([99])
    changed.save(tmp_path / "x")
    expected = straight.search(query, 80)
    assert len(expected.ids) == 80
    for index in (changed, LexicalIndex.load(tmp_path / "x")):
        found = index.search(query, 80)
        assert found.ids.tobytes() == expected.ids.tobytes()
        assert found.scores.tobytes() == expected.scores.tobytes()


@given(st.lists(st.text("aB1_.-:#+é語 \\\n", max_size=30), max_size=6))
@settings(max_examples=60)
def test_an_index_counts_what_words_of_finds(texts: list[str]) -> None:
    index = filled(*texts)
    for i, text in enumerate(texts):
        counted = Counter(words_of(text))
        held = index.count(text, [10 + i])
        assert held.lengths.tolist() == [counted.total()]
        assert dict(zip(sorted(counted), held.counts[0].tolist(), strict=True)) == counted


def test_words_of_removed_texts_leave_the_file(tmp_path: Path) -> None:
    index = filled("public words", "secretword here")
    index.remove([11])
    index.save(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    assert b"public" in data and b"secretword" not in data


def test_bad_calls_are_refused() -> None:
    index = filled("a")
    with pytest.raises(ValueError, match="held already"):
        index.add([10], ["b"])
    with pytest.raises(ValueError, match="as many as ids: 2"):
        index.add([1, 2], ["b"])
    with pytest.raises(ValueError, match="k: got 0"):
        index.search("a", 0)
