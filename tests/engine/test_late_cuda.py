"""The engine's CUDA path over a device that does everything as late as it may (`late_cuda.py`):
the answers are those of a CPU, and each wait that is left out makes another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from late_cuda import LateCuda

from chunkcache.engine import chunk_pages, lane, lowering, sample
from chunkcache.engine.arrival import Arrival
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.graphed import CudaCapture
from chunkcache.engine.lane import StreamLane
from chunkcache.engine.loader import Batch
from chunkcache.engine.lowering import Lowering
from chunkcache.engine.outcome import Outcome
from chunkcache.errors import ChunkCacheError, NotFinite
from chunkcache.protocol import Sampling
from chunkcache.store.reader import HeldRecord

CPU = torch.device("cpu")
CHUNKS = (40, 33, 21, 37, 26)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateCuda:
    made = LateCuda()
    made.install(monkeypatch)
    return made


def rubbish(arena: Any, first: int, kv: torch.Tensor, pages: Any, _: Any) -> None:
    arena.keys[first : first + len(kv), pages] = torch.nan
    arena.values[first : first + len(kv), pages] = torch.nan


Ask = Callable[[], Outcome]


@pytest.fixture
def answers(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Ask, Ask]]:
    """A prompt whose chunks come up from memory a layer at a time: on a CPU, and late."""
    plain = open_bench(tiny)
    tokens = [plain.tokens(count, seed) for seed, count in enumerate(CHUNKS)]
    records = {n: plain.record(ids) for n, ids in enumerate(tokens, 1)}
    monkeypatch.setattr("chunkcache.engine.loader.TASK_BYTES", 1)

    def ask(bench: Any) -> Outcome:
        chunks, pairs = bench.engine.chunks, []
        for record in records.values():
            resident, is_new = chunks.expect(record.key, record.stats)
            assert is_new
            pairs.append((HeldRecord(record), resident))
        bench.engine.loader.load(Batch("host", 0.0), pairs)
        held = iter([resident for _, resident in pairs])
        monkeypatch.setattr(chunks, "hold", lambda *_, **__: next(held))
        try:
            found: Outcome = bench.answer(
                bench.prompt(tokens), records, "question", budget=0.3, max_new_tokens=6,
                sampling=Sampling(ignore_eos=True),
            )  # fmt: skip
        finally:
            bench.wait_until_idle()  # it is ours for as long as torch's is away
        return found

    def ask_late() -> Outcome:
        made = LateCuda()
        made.install(monkeypatch)
        monkeypatch.setattr(DecoderModel, "runs_ahead", True)
        monkeypatch.setattr(chunk_pages, "lane_for", StreamLane)
        monkeypatch.setattr(sample, "has_streams", lambda _: True)
        bench = open_bench(tiny)
        pages = bench.engine.chunks
        pages._place = made.queued(pages._place, rubbish)
        found = ask(bench)
        assert made.late > len(CHUNKS) * tiny.geometry.num_layers, "layers, and tokens"
        return found

    yield lambda: ask(plain), ask_late


def test_what_is_done_late_is_what_is_done_at_once(answers: tuple[Ask, Ask]) -> None:
    plain, late = (ask() for ask in answers)
    assert late.token_ids == plain.token_ids
    assert torch.equal(late.first_logits, plain.first_logits)


WAITS: dict[str, tuple[Any, str, Any]] = {
    "a layer is read when it came": (Arrival, "follow", lambda self: self.is_whole),
    "a buffer is filled when it was copied": (
        lane.StreamMark, "synchronize", lambda self: None,
    ),
    "a token is read when it is there": (
        sample.Drawn, "read", lambda self: (int(self._here[0]), True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("wait", list(WAITS))
def test_a_wait_that_is_left_out_shows(
    wait: str, answers: tuple[Ask, Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = answers[0]()
    monkeypatch.setattr(*WAITS[wait])
    try:
        late = answers[1]()
    except ChunkCacheError as error:
        assert isinstance(error, NotFinite) or "OverflowError" in str(error), "no such token"
        return
    assert late.token_ids != plain.token_ids or not torch.equal(
        late.first_logits, plain.first_logits
    )


def test_graphs_made_anew_are_captured_when_none_of_the_old_ones_is_left(late: LateCuda) -> None:
    """As when a step finds no room in its buffers, and in every engine behind the gate's."""
    capture, ran = CudaCapture(CPU), list[int]()
    for number in range(3):
        replay = capture(lambda number=number: ran.append(number))  # type: ignore[misc]
        replay()
        assert late.replayed == number + 1 and not late.broken
        del replay
    assert ran == [0, 0, 1, 1, 2, 2], "once to make libraries ready, once to be captured"


def test_behind_a_capture_that_failed_none_is_tried(late: LateCuda) -> None:
    capture, ran = CudaCapture(CPU), list[int]()
    late.fails = True
    again = capture(lambda: ran.append(1))
    late.fails = False
    other = capture(lambda: ran.append(2))
    again()
    other()
    assert ran == [1, 1, 1, 2] and late.replayed == 0


def test_a_piece_runs_behind_what_the_engine_has_queued_and_before_what_it_queues(
    late: LateCuda,
) -> None:
    order: list[str] = []
    capture = CudaCapture(CPU)
    late.default.give(lambda: order.append("before"))

    def piece() -> None:
        if not late.capturing:
            late.current_stream().give(lambda: order.append("piece"))

    capture(piece)
    late.default.give(lambda: order.append("behind"))
    assert order == ["before", "piece", "behind"]


@pytest.fixture
def down_late(late: LateCuda, monkeypatch: pytest.MonkeyPatch) -> LateCuda:
    """What new chunks are made of comes down late."""
    monkeypatch.setattr(lowering, "lane_for", StreamLane)
    monkeypatch.setattr(lowering, "has_streams", lambda _: True)
    return late


def made_of(bench: Any) -> list[torch.Tensor]:
    tokens = [bench.tokens(count, seed) for seed, count in enumerate(CHUNKS)]
    return [bench.record(ids).kv for ids in tokens]


def test_a_record_is_what_came_down(
    tiny: DecoderModel, open_bench: Callable[..., Any], down_late: LateCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = made_of(open_bench(tiny))
    assert down_late.late == len(CHUNKS), "each on a stream of its own, into pinned memory"
    monkeypatch.setattr(lowering, "has_streams", lane.has_streams)
    plain = made_of(open_bench(tiny))
    assert all(map(torch.equal, found, plain)) and not any(kv.is_pinned() for kv in found)


def test_a_record_that_is_read_before_it_came_shows(
    tiny: DecoderModel, open_bench: Callable[..., Any], down_late: LateCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(lane.StreamMark, "synchronize", lambda self: None)
    assert all((kv == -7).all() for kv in made_of(open_bench(tiny)))


def test_the_next_chunks_are_computed_while_one_comes_down(
    tiny: DecoderModel, open_bench: Callable[..., Any], down_late: LateCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    came, true = threading.Event(), lane.StreamMark.synchronize

    def synchronize(mark: lane.StreamMark) -> None:
        assert came.wait(60)
        true(mark)

    monkeypatch.setattr(lane.StreamMark, "synchronize", synchronize)
    bench = open_bench(tiny)
    requests = [bench.begin(bench.tokens(20 + n, n)) for n in range(2)]
    bench.wait_until_idle()  # they have run, though none has come
    assert not any(request.future.done() for request in requests)
    assert bench.engine.lowering._free.empty(), "another one would wait for a buffer"
    requests += [bench.begin(bench.tokens(22 + n, n)) for n in range(2)]
    came.set()
    assert [r.future.result(60).num_tokens for r in requests] == [20, 21, 22, 23]


def test_what_goes_wrong_with_one_keeps_no_buffer_and_no_other(
    down_late: LateCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = Lowering(CPU)
    said: list[ChunkCacheError] = []
    given: list[torch.Tensor] = []

    def refuse(_: torch.Tensor) -> None:
        raise ValueError("no use for it")

    for _ in range(5):
        down(torch.ones(3), refuse, said.append)
    with monkeypatch.context() as broken:
        broken.setattr(StreamLane, "mark", refuse)
        for _ in range(5):
            with pytest.raises(ValueError, match="no use"):
                down(torch.ones(3), given.append, said.append)
    down(torch.arange(3.0), given.append, said.append)
    down.close()
    assert len(said) == 5 and all("no use for it" in error.message for error in said)
    assert torch.equal(given[0], torch.arange(3.0)) and len(given) == 1
