"""Chunks that come up layer by layer: late, in any order, or not at all, every answer is right."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from chunkcache.chunk import ChunkKV
from chunkcache.config import RepairSettings
from chunkcache.engine import sequence_kv
from chunkcache.engine.generation import Generation
from chunkcache.engine.loader import Batch, Brought, Loader
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.resident import Resident
from chunkcache.errors import Cancelled, CorruptRecord, ShuttingDown, StoreError
from chunkcache.protocol import Sampling
from chunkcache.repair import policy_named
from chunkcache.store.reader import HeldRecord

LAYERS = 3
WAIT_S = 30


class Stepped(HeldRecord):
    """A record whose layers are given one by one, as the test lets them, or fail."""

    def __init__(self, record: ChunkKV, *, open_to: int = 0, fails: dict[int, Exception] = {}):  # noqa: B006
        super().__init__(record)
        self.gates = [threading.Event() for _ in range(LAYERS)]
        self.asked = [threading.Event() for _ in range(LAYERS)]
        self.fails = fails
        self.closed = 0
        self.let(open_to)

    def let(self, end: int) -> None:
        for gate in self.gates[:end]:
            gate.set()

    def read_layers(self, first: int, last: int, out: torch.Tensor) -> None:
        for layer in range(first, last):
            self.asked[layer].set()
            assert self.gates[layer].wait(WAIT_S)
            if layer in self.fails:
                raise self.fails[layer]
        super().read_layers(first, last, out)

    def __exit__(self, *_: Any) -> None:
        self.closed += 1


@dataclass
class Scene:
    """Two chunks of a prompt in a bench, and what is known of them."""

    bench: Any
    records: dict[int, ChunkKV]
    prompt: Any
    policy: str = "question"
    budget: float = 0.3
    salts: int = 0
    ended: list[Batch] = field(default_factory=list)

    def coming(self, record: ChunkKV) -> Resident:
        """Pages for a chunk whose writer is the test."""
        expected = self.bench.engine.chunks.expect(record.key, record.stats)
        assert expected is not None and expected[1]
        return expected[0]

    def loading(self, *readers: Stepped) -> dict[int, Resident]:
        """The chunks, on their way up from the readers."""
        pairs = [(reader, self.coming(reader.record)) for reader in readers]
        self.bench.engine.loader.load(Batch("fake", 0.0, on_end=self.ended.append), pairs)
        keys = {record.key: index for index, record in self.records.items()}
        return {keys[reader.key]: resident for reader, resident in pairs}

    def held(self) -> dict[int, Resident]:
        return {i: self.bench.engine.chunks.hold(r, listed=False) for i, r in self.records.items()}

    def submit(self, residents: dict[int, Resident], **options: Any) -> Generation:
        self.salts += 1
        request = Generation(
            self.prompt, residents, policy=policy_named(self.policy, RepairSettings()),
            budget=self.budget, exact_only=False, sampling=Sampling(), max_new_tokens=3,
            salt=b"scene %d" % self.salts, **options,
        )  # fmt: skip
        self.bench.engine.submit(request)
        return request

    def answer(self, residents: dict[int, Resident]) -> Outcome:
        return outcome_of(self.submit(residents))


class Timed(HeldRecord):
    """A record that a codec takes so long for, by the test's own clock."""

    def __init__(self, record: ChunkKV, codec: str, layer_s: float, clock: list[float]) -> None:
        super().__init__(record)
        self.codec, self.layer_s, self.clock = codec, layer_s, clock

    def read_layers(self, first: int, last: int, out: torch.Tensor) -> None:
        self.clock[0] += self.layer_s * (last - first)
        super().read_layers(first, last, out)


def outcome_of(request: Generation) -> Outcome:
    return next(event for event in request.events() if isinstance(event, Outcome))


def assert_same(mine: Outcome, other: Outcome) -> None:
    assert torch.equal(mine.first_logits, other.first_logits)
    assert mine.token_ids == other.token_ids
    assert mine.recomputed.tolist() == other.recomputed.tolist()
    assert (mine.probe_rows, mine.cost_ratio) == (other.probe_rows, other.cost_ratio)
    assert mine.probed_residual == other.probed_residual


@pytest.fixture
def scene(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr("chunkcache.engine.loader.TASK_BYTES", 1)  # a layer at a time
    monkeypatch.setattr(sequence_kv, "PATIENCE_S", WAIT_S)
    chunks = [bench.tokens(count, seed) for count, seed in ((30, 1), (41, 2))]
    records = {i: bench.record(ids) for i, ids in enumerate(chunks, start=1)}
    return Scene(bench, records, bench.prompt(chunks))


@pytest.mark.parametrize("policy", ["none", "first_k", "question", "deviation", "gradual", "all"])
def test_a_pass_goes_on_with_each_layer_that_has_come(scene: Scene, policy: str) -> None:
    """It begins with the first one, and says what it says with all of them there."""
    scene.policy = policy
    known = scene.answer(scene.held())
    first, second = (Stepped(record) for record in scene.records.values())
    request = scene.submit(scene.loading(first, second))
    for layer in range(LAYERS):
        assert first.asked[layer].wait(WAIT_S)
        first.let(layer + 1)
        second.let(layer + 1)
    outcome = outcome_of(request)
    assert_same(outcome, known)
    assert request.lost == {} and not request.was_given_up
    assert (first.closed, second.closed) == (1, 1)
    (batch,) = scene.ended
    assert batch.size_bytes == sum(r.size_bytes for r in scene.records.values())
    assert outcome.wait_ms >= 0
    parts = outcome.queue_ms + outcome.probe_ms + outcome.wait_ms + outcome.compute_ms
    assert parts == pytest.approx(outcome.ttft_ms)


def test_the_first_layer_runs_before_the_last_has_come(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, ran = scene.bench.model.runner, threading.Event()
    true = type(runner).rest

    def layer(self: Any, index: int, *rest: Any) -> Any:
        done = true(self, index, *rest)
        if index == 0:
            ran.set()
        return done

    monkeypatch.setattr(type(runner), "rest", layer)
    readers = [Stepped(record, open_to=1) for record in scene.records.values()]
    request = scene.submit(scene.loading(*readers))
    assert ran.wait(WAIT_S), "it waits for whole records"
    for reader in readers:
        reader.let(LAYERS)
    outcome_of(request)


def test_layers_may_come_in_any_order(scene: Scene) -> None:
    known = scene.answer(scene.held())
    residents = {i: scene.coming(record) for i, record in scene.records.items()}
    request = scene.submit(residents)
    chunks = scene.bench.engine.chunks
    for index, layer in ((1, 2), (2, 0), (2, 2), (1, 0), (1, 1), (2, 1)):
        chunks.write(residents[index], layer, scene.records[index].kv[layer : layer + 1])
    for resident in residents.values():
        chunks.settle(resident)
    assert_same(outcome_of(request), known)


@pytest.mark.parametrize("policy", ["question", "deviation", "gradual", "none"])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("error", [CorruptRecord("flipped"), StoreError("gone"), OSError("odd")])
def test_a_layer_that_cannot_be_read_makes_a_miss_of_the_chunk(
    scene: Scene, layer: int, error: Exception, policy: str
) -> None:
    scene.policy = policy
    (one,) = (scene.bench.engine.chunks.hold(scene.records[1], listed=False),)
    without = scene.answer({1: one})
    sound = Stepped(scene.records[1], open_to=LAYERS)
    broken = Stepped(scene.records[2], open_to=LAYERS, fails={layer: error})
    request = scene.submit(scene.loading(sound, broken))
    assert_same(outcome_of(request), without)
    reason = "corrupt" if isinstance(error, CorruptRecord) else "error"
    assert request.lost == {2: reason}
    scene.bench.wait_until_idle()
    assert scene.bench.engine.chunks.lease(scene.records[2].key) is None, "nobody finds it"
    assert broken.closed == sound.closed == 1
    usage = scene.bench.engine.chunks.usage()
    assert usage.records == 1, "its pages are free again"


def test_both_chunks_lost_is_a_prompt_computed_in_full(scene: Scene) -> None:
    full = scene.bench.full(scene.prompt)
    readers = [
        Stepped(record, open_to=LAYERS, fails={layer: CorruptRecord("flipped")})
        for layer, record in enumerate(scene.records.values(), start=1)
    ]
    request = scene.submit(scene.loading(*readers))
    outcome = outcome_of(request)
    assert request.lost == {1: "corrupt", 2: "corrupt"}
    torch.testing.assert_close(outcome.first_logits, full.first_logits)
    assert outcome.residual == 0.0


def test_a_layer_that_is_late_lets_others_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass is given up and begun again when all is there; others are answered meanwhile."""
    monkeypatch.setattr(sequence_kv, "PATIENCE_S", 0.001)
    known = scene.answer(scene.held())
    readers = [Stepped(record, open_to=1) for record in scene.records.values()]
    request = scene.submit(scene.loading(*readers))
    while not request.was_given_up:
        time.sleep(0.001)
    other = scene.bench.answer(scene.bench.prompt([]), {}, exact_only=True, salt=b"other")
    assert len(other.token_ids) == 3
    for reader in readers:
        reader.let(LAYERS)
    assert_same(outcome_of(request), known)


def test_what_decodes_never_waits_for_the_chunks_of_another(scene: Scene) -> None:
    decoding = scene.bench.submit(
        scene.bench.prompt([]), {}, exact_only=True, salt=b"other", max_new_tokens=40,
        sampling=Sampling(ignore_eos=True),
    )  # fmt: skip
    events = decoding.events()
    next(events)  # it decodes now
    readers = [Stepped(record) for record in scene.records.values()]
    request = scene.submit(scene.loading(*readers))
    assert len(next(e for e in events if isinstance(e, Outcome)).token_ids) == 40
    for reader in readers:
        reader.let(LAYERS)
    assert len(outcome_of(request).token_ids) == 3


def test_who_leaves_while_chunks_come_leaves_nothing_behind(scene: Scene) -> None:
    readers = [Stepped(record, open_to=1) for record in scene.records.values()]
    request = scene.submit(scene.loading(*readers))
    assert readers[0].asked[1].wait(WAIT_S)
    scene.bench.engine.cancel(request)
    for reader in readers:
        reader.let(LAYERS)
    with pytest.raises(Cancelled):
        list(request.events())
    scene.bench.wait_until_idle()
    again = {i: scene.bench.engine.chunks.lease(r.key) for i, r in scene.records.items()}
    assert None not in again.values(), "what was read stays for the next one"
    assert_same(scene.answer(again), scene.answer(scene.held()))


def test_closing_gives_up_what_has_not_come(scene: Scene) -> None:
    readers = [Stepped(record, open_to=1) for record in scene.records.values()]
    waiting = Stepped(scene.bench.record(scene.bench.tokens(9, 77)))
    residents = scene.loading(*readers)
    expected = scene.coming(waiting.record)
    scene.bench.engine.loader.load(Batch("fake", 0.0), [(waiting, expected)])
    scene.bench.engine.chunks.release([expected])
    request = scene.submit(residents)
    assert all(reader.asked[1].wait(WAIT_S) for reader in readers), "both threads are in there"
    closing = threading.Thread(target=scene.bench.engine.close)
    closing.start()
    while expected.arrival.failure is None:  # it was not begun
        assert closing.is_alive()
    for reader in readers:
        reader.let(LAYERS)
    closing.join(WAIT_S)
    assert not closing.is_alive()
    with pytest.raises(ShuttingDown):
        list(request.events())
    assert [r.closed for r in (*readers, waiting)] == [1, 1, 1]
    late = scene.coming(scene.records[1])
    reader = Stepped(scene.records[1])
    scene.bench.engine.loader.load(Batch("fake", 0.0), [(reader, late)])
    assert late.arrival.failure == "closed" and reader.closed == 1
    scene.bench.engine.chunks.release([late])
    assert scene.bench.engine.chunks.usage().size_bytes == 0


def test_what_nobody_waits_for_comes_last(scene: Scene) -> None:
    """Two threads are busy with two chunks; of those behind, the foreseen one is read last."""
    engine, order = scene.bench.engine, []

    class Noted(Stepped):
        def read_layers(self, first: int, last: int, out: torch.Tensor) -> None:
            order.append((self.key, first))
            super().read_layers(first, last, out)

    busy = [Stepped(record, open_to=0) for record in scene.records.values()]
    scene.loading(*busy)
    records = [scene.bench.record(scene.bench.tokens(9, seed)) for seed in (5, 6)]
    foreseen = engine.chunks.expect(records[0].key, records[0].stats, foreseen=True)
    wanted = engine.chunks.expect(records[1].key, records[1].stats)
    assert foreseen is not None and wanted is not None
    assert all(reader.asked[0].wait(WAIT_S) for reader in busy)
    for record, (resident, _) in zip(records, (foreseen, wanted), strict=True):
        engine.loader.load(Batch("fake", 0.0), [(Noted(record, open_to=LAYERS), resident)])
    busy[0].let(LAYERS)  # one thread goes on, the other stays where it is
    while not foreseen[0].arrival.is_whole:
        assert busy[1].asked[0].is_set()
    busy[1].let(LAYERS)
    assert order == [(r.key, layer) for r in records[::-1] for layer in range(LAYERS)]
    engine.chunks.release([wanted[0]])
    for record in scene.records.values():
        resident = engine.chunks.lease(record.key)
        engine.chunks.release([resident, resident])


def test_records_wanted_whole_are_handed_on(scene: Scene) -> None:
    got: list[ChunkKV] = []
    ended = threading.Event()
    batch = Batch(
        "fake", 0.0, on_record=lambda _, record: got.append(record), on_end=lambda _: ended.set()
    )
    record = scene.records[1]
    resident = scene.coming(record)
    scene.bench.engine.loader.load(batch, [(Stepped(record, open_to=LAYERS), resident)])
    assert ended.wait(WAIT_S)
    (whole,) = got
    assert whole.key == record.key and torch.equal(whole.kv, record.kv)
    scene.bench.engine.chunks.release([resident])


def test_a_record_that_memory_has_no_room_for_is_a_miss_like_any_other(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    told, ended = list[str](), threading.Event()
    batch = Batch(
        "fake", 0.0, on_record=lambda *_: told.append("a record"),
        on_failure=lambda _, __, error: told.append(str(error)), on_end=lambda _: ended.set(),
    )  # fmt: skip
    monkeypatch.setattr("chunkcache.engine.loader.kv_shape", no_room)
    readers = [Stepped(record, open_to=LAYERS) for record in scene.records.values()]
    residents = [scene.coming(reader.record) for reader in readers]
    scene.bench.engine.loader.load(batch, list(zip(readers, residents, strict=True)))
    assert ended.wait(WAIT_S), "a request would wait for ever"
    assert [resident.arrival.failure for resident in residents] == ["error"] * 2
    assert batch.failed == 2 and told == ["DefaultCPUAllocator: not enough memory"] * 2
    assert [reader.closed for reader in readers] == [1, 1]
    scene.bench.engine.chunks.release(residents)


@pytest.mark.parametrize("fails", [{}, {1: StoreError("gone")}], ids=["whole", "failed"])
def test_a_listener_that_raises_ends_no_loader(scene: Scene, fails: dict[int, Exception]) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("a fault of who listens")

    engine, record = scene.bench.engine, scene.records[1]
    for _ in range(3):  # more than there are threads
        resident = scene.coming(record)
        reader = Stepped(record, open_to=LAYERS, fails=fails)
        batch = Batch("fake", 0.0, on_record=breaks, on_failure=breaks, on_end=breaks)
        engine.loader.load(batch, [(reader, resident)])
        deadline = time.monotonic() + WAIT_S
        while resident.leases > 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert resident.leases == 1 and resident.arrival.is_settled
        assert resident.arrival.is_whole == (not fails)
        engine.chunks.release([resident])
        engine.chunks.clear()


def test_a_batch_says_how_long_each_codec_kept_it_busy(scene: Scene) -> None:
    clock, ended = [5.0], threading.Event()
    loader = Loader(scene.bench.engine.chunks, threads=1, clock=lambda: clock[0])
    first, second = scene.records.values()
    batch = Batch("fake", 3.0, on_end=lambda _: ended.set())
    readers = [Timed(first, "raw", 1.0, clock), Timed(second, "int8", 4.0, clock)]
    loader.load(batch, [(reader, scene.coming(reader.record)) for reader in readers])
    assert ended.wait(WAIT_S)
    loader.close()
    assert batch.brought == {
        "raw": Brought(first.size_bytes, LAYERS * 1.0),
        "int8": Brought(second.size_bytes, LAYERS * 4.0),
    }
    assert batch.seconds == 2.0 + LAYERS * 5.0
