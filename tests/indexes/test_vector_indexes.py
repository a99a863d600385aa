"""The same calls on every vector index, and the flat one against plain numpy."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache_indexes.ann import HnswIndex
from chunkcache_indexes.base import NO_ID
from chunkcache_indexes.flat import FlatIndex
from chunkcache_indexes.recall import recall_at_k

if TYPE_CHECKING:
    from collections.abc import Callable

    Clustered = Callable[..., np.ndarray]

KINDS = [FlatIndex, HnswIndex]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def brute_force(ids: np.ndarray, vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """By sorting all pairs in Python: no partition, no matrix product."""
    scored = [
        (-sum(float(a) * float(b) for a, b in zip(v, query, strict=True)), int(i))
        for i, v in zip(ids, vectors, strict=True)
    ]
    return [i for _, i in sorted(scored)[:k]]


@pytest.mark.parametrize("k", [1, 7, 60, 61, 100])
def test_flat_equals_sorting_all_pairs(clustered: Clustered, k: int) -> None:
    vectors, ids = clustered(61, 13), np.arange(61) * 3 + 5
    index = FlatIndex(13)
    index.add(ids, vectors)
    queries = clustered(4, 13, seed=1)
    found = index.search(queries, k)
    for row, query in enumerate(queries):
        expected = brute_force(ids, vectors, query, k)
        assert found.ids[row].tolist() == expected + [NO_ID] * (k - len(expected))
        by_id = dict(zip(ids.tolist(), vectors, strict=True))
        scores = [float(by_id[i] @ query) for i in expected]
        assert found.scores[row, : len(expected)] == pytest.approx(scores, abs=1e-6)
        assert np.isneginf(found.scores[row, len(expected) :]).all()


@given(
    values=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=30),
    k=st.integers(1, 35),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_flat_orders_equal_scores_by_id_whatever_the_order_of_addition(
    values: list[list[int]], k: int, data: st.DataObject
) -> None:
    """Small integers are exact in float32, so ties are ties."""
    vectors = np.array(values, np.float32)
    order = np.array(data.draw(st.permutations(range(len(values)))))
    index = FlatIndex(3)
    for place in np.array_split(order, 3):
        index.add(place, vectors[place])
    query = np.array([[1, 2, -1]], np.float32)
    expected = brute_force(np.arange(len(values)), vectors, query[0], k)
    assert index.search(query, k).ids[0, : len(expected)].tolist() == expected


def test_flat_takes_few_beside_many_without_copying_those(
    clustered: Clustered, tmp_path: Path
) -> None:
    vectors = clustered(400, 8)
    index = FlatIndex(8)
    index.add(np.arange(300), vectors[:300])
    where = index._room.ctypes.data
    for n in range(300, 330):
        index.add([n], vectors[n : n + 1])
        assert index._room.ctypes.data == where
    index.remove(np.arange(0, 330, 2))
    index.add([0], vectors[:1])
    index.save(tmp_path / "x")
    loaded = FlatIndex.load(tmp_path / "x")
    loaded.add([], np.empty((0, 8)))
    left = [0, *range(1, 330, 2)]
    for one in (index, loaded):
        one.add(np.arange(330, 400), vectors[330:])
        held = np.array([*left, *range(330, 400)])
        found = one.search(vectors[:3], 9)
        for row in range(3):
            assert found.ids[row].tolist() == brute_force(held, vectors[held], vectors[row], 9)


def test_flat_loaded_finds_what_flat_built_finds_bit_for_bit(
    clustered: Clustered, tmp_path: Path
) -> None:
    built = FlatIndex(24)
    built.add(np.arange(333) * 5, clustered(333, 24))
    queries = clustered(7, 24, seed=1)
    before = [built.search(query[None], 50) for query in queries]
    built.save(tmp_path / "x")
    for index in (built, FlatIndex.load(tmp_path / "x")):
        for query, expected in zip(queries, before, strict=True):
            found = index.search(query[None], 50)
            assert found.ids.tobytes() == expected.ids.tobytes()
            assert found.scores.tobytes() == expected.scores.tobytes()


def test_flat_lets_go_of_what_it_saved_and_changes_beside_the_file(
    clustered: Clustered, tmp_path: Path
) -> None:
    vectors = clustered(100, 8)
    index = FlatIndex(8)
    index.add(range(90), vectors[:90])
    index.save(tmp_path / "x")
    filed = index._filed
    assert len(index._room) == 0 and not filed.flags.writeable
    index.add(range(90, 100), vectors[90:])
    assert index.remove(range(80, 95)) == 15
    assert index._filed is filed  # neither copied what there was
    held = np.array([*range(80), *range(95, 100)])
    assert index.ids.tolist() == held.tolist()
    for row, query in enumerate(clustered(3, 8, seed=2)):
        found = index.search(query[None], 99).ids[0]
        assert found[:85].tolist() == brute_force(held, vectors[held], query, 99), row
        assert (found[85:] == NO_ID).all()
    index.save(tmp_path / "x")
    assert FlatIndex.load(tmp_path / "x").ids.tolist() == held.tolist()


def test_flat_does_not_take_a_file_that_another_process_has_put_there(
    clustered: Clustered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, other = FlatIndex(8), FlatIndex(8)
    index.add(range(9), clustered(9, 8))
    other.add(range(9), clustered(9, 8, seed=1))
    real = Path.replace

    def overtaken(partial: Path, path: Path) -> Path:
        monkeypatch.undo()
        real(partial, path)
        other.save(path)
        return path

    monkeypatch.setattr(Path, "replace", overtaken)
    index.save(tmp_path / "x")
    assert index.ids.tolist() == list(range(9))
    assert not index._filed.flags.writeable and len(index._room) == 0
    query = clustered(1, 8, seed=2)
    assert index.search(query, 9).ids[0].tolist() == brute_force(
        np.arange(9), clustered(9, 8), query[0], 9
    )


def test_flat_saves_without_reading_its_file_again(
    clustered: Clustered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = FlatIndex(8)
    index.add(range(90), clustered(90, 8))
    index.remove(range(3))
    monkeypatch.setattr("chunkcache_indexes.index_file._verify", None)
    index.save(tmp_path / "x")
    monkeypatch.undo()
    loaded = FlatIndex.load(tmp_path / "x")
    assert index.ids.tolist() == loaded.ids.tolist() == list(range(3, 90))
    assert index._filed.tobytes() == loaded._filed.tobytes()
    assert not index._filed.flags.writeable and len(index._room) == 0


def test_flat_splits_a_large_batch_of_queries_without_changing_the_answer(
    clustered: Clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = FlatIndex(8)
    index.add(range(50), clustered(50, 8))
    queries = clustered(33, 8, seed=2)
    whole = index.search(queries, 5)
    monkeypatch.setattr("chunkcache_indexes.flat._SCORES_AT_ONCE", 120)
    assert np.array_equal(index.search(queries, 5).ids, whole.ids)


def test_hnsw_finds_nearly_all_that_flat_finds(clustered: Clustered) -> None:
    vectors = clustered(4000, 48)
    flat, graph = FlatIndex(48), HnswIndex(48)
    for index in (flat, graph):
        index.add(range(4000), vectors)
    queries = clustered(100, 48, seed=3)
    assert recall_at_k(graph, flat, queries, 10) >= 0.97
    assert recall_at_k(flat, flat, queries, 10) == 1.0


def test_recall_falls_when_candidates_are_few(clustered: Clustered) -> None:
    """The measure itself: it must tell a bad index from a good one."""
    vectors = clustered(3000, 48)
    flat, poor = FlatIndex(48), HnswIndex(48, links=2, ef_build=2, ef_search=1)
    for index in (flat, poor):
        index.add(range(3000), vectors)
    assert recall_at_k(poor, flat, clustered(50, 48, seed=3), 10) < 0.9


def test_recall_counts_shared_ids_only(clustered: Clustered) -> None:
    vectors = clustered(20, 4)
    flat, half = FlatIndex(4), FlatIndex(4)
    flat.add(range(20), vectors)
    half.add(range(0, 20, 2), vectors[::2])
    assert recall_at_k(half, flat, vectors, 20) == 0.5
    assert recall_at_k(half, FlatIndex(4), vectors, 3) == 1.0


def test_hnsw_keeps_its_recall_after_removals(clustered: Clustered) -> None:
    vectors = clustered(2000, 32)
    flat, graph = FlatIndex(32), HnswIndex(32, max_dead_share=0.3)
    gone = np.random.default_rng(4).choice(2000, 560, replace=False)
    for index in (flat, graph):
        index.add(range(2000), vectors)
        assert index.remove(gone) == 560
    assert graph.num_dead == 560
    queries = clustered(60, 32, seed=5)
    assert not np.isin(graph.search(queries, 10).ids, gone).any()
    assert recall_at_k(graph, flat, queries, 10) >= 0.97


def test_hnsw_keeps_its_recall_and_exact_scores_in_every_order_of_addition(
    clustered: Clustered,
) -> None:
    """Which of the neighbours it misses depends on the order; how many, and scores, do not."""
    vectors, queries = clustered(1500, 32), clustered(60, 32, seed=5)
    flat = FlatIndex(32)
    flat.add(range(1500), vectors)
    for seed in range(3):
        graph = HnswIndex(32)
        for places in np.array_split(np.random.default_rng(seed).permutation(1500), 1 + 2 * seed):
            graph.add(places, vectors[places])
        assert recall_at_k(graph, flat, queries, 10) >= 0.97
        found = graph.search(queries, 10)
        for query, ids, scores in zip(queries, found.ids, found.scores, strict=True):
            assert np.allclose(scores, vectors[ids] @ query, atol=1e-6)


def test_hnsw_rebuilds_when_too_many_are_marked(clustered: Clustered) -> None:
    graph = HnswIndex(16, max_dead_share=0.25)
    graph.add(range(100), clustered(100, 16))
    graph.remove(range(25))
    assert (graph.num_dead, len(graph)) == (25, 75)
    graph.remove([25])
    assert (graph.num_dead, len(graph)) == (0, 74)
    assert graph.ids.tolist() == list(range(26, 100))


def test_hnsw_comes_back_full_when_the_graph_search_runs_dry(clustered: Clustered) -> None:
    """Nearly all near the query is marked: the graph search ends before it meets the rest."""
    vectors = clustered(2000, 24)
    graph = HnswIndex(24, links=4, ef_build=8, ef_search=4, max_dead_share=0.999)
    flat = FlatIndex(24)
    for index in (graph, flat):
        index.add(range(2000), vectors)
        index.remove(range(6, 2000))
    queries = clustered(20, 24, seed=7)
    _, places = graph._graph.search(queries, 4, params=graph._search_parameters(4))
    assert (places < 0).any()  # else this test shows nothing
    for k in (1, 4, 9):
        assert np.array_equal(graph.search(queries, k).ids, flat.search(queries, k).ids)


def test_additions_removals_and_files_look_the_same_from_outside(
    kind: Any, clustered: Clustered, tmp_path: Path
) -> None:
    """Congruence: with few vectors, HNSW is exact, so one script must give one result."""
    vectors, queries = clustered(90, 12), clustered(9, 12, seed=1)
    index, twin = kind(12), FlatIndex(12)

    def check(index: Any) -> None:
        assert len(index) == len(twin)
        assert index.ids.tolist() == twin.ids.tolist()
        for k in (1, 5, 200):
            found, expected = index.search(queries, k), twin.search(queries, k)
            assert np.array_equal(found.ids, expected.ids)
            assert np.allclose(found.scores, expected.scores, atol=1e-6)

    check(index)
    for low, high in ((0, 1), (1, 40), (40, 90)):
        index.add(np.arange(low, high) * 7, vectors[low:high])
        twin.add(np.arange(low, high) * 7, vectors[low:high])
        check(index)
    for gone in ([0], [7, 14, 14, 1, 10**12], [], np.arange(30) * 7):
        assert index.remove(gone) == twin.remove(gone)
        check(index)
    path = tmp_path / "some" / "vectors.idx"
    index.save(path)
    loaded = kind.load(path)
    check(loaded)
    for changed in (loaded, twin):  # a loaded index can be changed
        changed.add([7, 3], vectors[:2])
        changed.remove(range(200, 300))
    check(loaded)
    assert [file.name for file in path.parent.iterdir()] == ["vectors.idx"]


def test_an_emptied_index_can_be_saved_loaded_and_filled_again(
    kind: Any, clustered: Clustered, tmp_path: Path
) -> None:
    index = kind(4)
    index.add([1, 2], clustered(2, 4))
    index.remove([1, 2])
    index.save(tmp_path / "empty.idx")
    index = kind.load(tmp_path / "empty.idx")
    assert len(index) == 0
    assert index.search(clustered(2, 4), 3).ids.tolist() == [[NO_ID] * 3] * 2
    index.add([2], clustered(1, 4))
    assert index.search(clustered(1, 4), 2).ids.tolist() == [[2, NO_ID]]


def test_no_queries_give_no_rows(kind: Any, clustered: Clustered) -> None:
    index = kind(4)
    index.add([1, 2], clustered(2, 4))
    assert index.search(np.empty((0, 4)), 3).ids.shape == (0, 3)


@pytest.mark.parametrize(
    ("ids", "vectors", "says"),
    [
        ([1, 1], np.ones((2, 3)), "more than once"),
        ([7], np.ones((1, 3)), "got 7, which is held already"),
        ([-1], np.ones((1, 3)), "at least 0"),
        ([1, 2], np.ones((1, 3)), "as many as ids: 2"),
        ([1], np.ones((1, 4)), r"must be \[n, 3\]"),
        ([1], np.ones(3), r"must be \[n, 3\]"),
        ([1], np.array([[1, np.nan, 0]]), "not finite"),
        ([1.5], np.ones((1, 3)), "must be integers"),
    ],
)
def test_bad_additions_are_refused_and_change_nothing(
    kind: Any, ids: list[int], vectors: np.ndarray, says: str
) -> None:
    index = kind(3)
    index.add([7], np.ones((1, 3)))
    with pytest.raises(ValueError, match=says):
        index.add(ids, vectors)
    assert index.ids.tolist() == [7]


def test_bad_searches_are_refused(kind: Any) -> None:
    index = kind(3)
    with pytest.raises(ValueError, match="k: got 0"):
        index.search(np.ones((1, 3)), 0)
    with pytest.raises(ValueError, match="queries"):
        index.search(np.ones((1, 2)), 1)


@pytest.mark.parametrize(
    "wrong", [{"dim": 0}, {"links": 1}, {"ef_build": 0}, {"ef_search": 0}, {"max_dead_share": 1.0}]
)
def test_hnsw_names_the_parameter_that_is_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HnswIndex(**{"dim": 4, **wrong})


def test_hnsw_takes_the_bytes_that_its_docstring_says(clustered: Clustered, tmp_path: Path) -> None:
    graph = HnswIndex(384)
    graph.add(range(2000), clustered(2000, 384))
    graph.save(tmp_path / "x")
    per_vector = (tmp_path / "x").stat().st_size / 2000
    assert per_vector == pytest.approx(4 * 384 + 8 * 32 + 8 + 9, rel=0.03)


def test_many_threads_may_search_at_once(kind: Any, clustered: Clustered) -> None:
    index = kind(16)
    index.add(range(500), clustered(500, 16))
    index.remove(range(20))
    queries = clustered(40, 16, seed=6)
    expected = index.search(queries, 5).ids
    wrong: list[int] = []

    def search() -> None:
        for row, query in enumerate(queries):
            if not np.array_equal(index.search(query[None], 5).ids[0], expected[row]):
                wrong.append(row)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
