"""Steps on a device without numbers, torch's meta device: where would the host wait for a GPU?

Reading a number of it, or copying any to the host, raises. A mode beside it notes copies to the
device that wait: all that are not queued, and those out of memory that is not pinned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chunkcache.config import EngineSettings
from chunkcache.engine import ranked
from chunkcache.engine.angles import RotaryAngles
from chunkcache.engine.attention import Logits, SequenceRows
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.facts import LayerKind
from chunkcache.engine.graphed import GraphedLayers
from chunkcache.engine.observe import CaptureKV, DeviationScores, QuestionScores
from chunkcache.engine.packed import PackedLayers
from chunkcache.engine.pool import KVPool
from chunkcache.engine.sample import Sampler, filtered_probabilities
from chunkcache.engine.sequence_kv import SequenceKV
from chunkcache.protocol import Sampling
from chunkcache.repair import RepairTask, ReusedChunk, RowSelection
from chunkcache.store.reader import kv_shape

pytest.importorskip("triton")
from chunkcache_kernels import triton_pages, triton_records, triton_weights

PAGE, TOKENS = 8, 70
NOWHERE = "meta"
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Notes every copy that the host waits for the device with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.sent = 0
        self._pinned: dict[int, torch.Tensor] = {}  # by where it lies, which nobody else can then

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        pins = options.pop("pin_memory", False)
        out = func(*args, **options)
        if pins:
            self._pinned[out.data_ptr()] = out
        names = (argument.name for argument in func._schema.arguments)
        queued = (dict(zip(names, args, strict=False)) | options).get("non_blocking", False)
        # in inference mode a mode sees `to` itself, not the copy that it comes to
        if func.overloadpacket in (aten.to, aten._to_copy):
            self._note(args[0], out, queued)
        elif func.overloadpacket is aten.copy_:
            self._note(args[1], args[0], queued)
        return out

    def _note(self, source: torch.Tensor, target: torch.Tensor, queued: bool) -> None:
        if source.device.type == target.device.type:
            return
        if not queued or source.data_ptr() not in self._pinned:
            self.found.append(f"{tuple(source.shape)} from memory that is not pinned")
        self.sent += 1


class Launches:
    """Takes the place of Triton's programs, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __getattr__(self, _: str) -> Launches:
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) and size > 0 for size in grid)
        return self._launch

    def _launch(self, *_: Any, **__: Any) -> None:
        self.count += 1


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    made = Launches()
    for module in (triton_pages, triton_weights):
        monkeypatch.setattr(module, "triton_attend", made)
    monkeypatch.setattr(triton_pages, "triton_kernels", made)
    monkeypatch.setattr(triton_records, "promote_kernel", made)
    monkeypatch.setattr(KVPool, "runs_triton", lambda *_: True)
    return made


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def model(request: Any, build: Callable[..., DecoderModel]) -> DecoderModel:
    """A model without numbers."""
    real = build(request.param)
    config = copy.deepcopy(real.hf.config)
    config._attn_implementation = "eager"
    with torch.device(NOWHERE):
        network = type(real.hf)(config)
    kinds = tuple(
        LayerKind(kind.heads, RotaryAngles(kind.angles.frequencies.to(NOWHERE)))
        for kind in real.facts.kinds
    )
    facts = replace(real.facts, kinds=kinds)
    runner = PackedLayers(network, facts)
    return replace(real, hf=network, facts=facts, runner=runner, device=torch.device(NOWHERE))


def rows_of(model: DecoderModel, kv: SequenceKV, first: int, end: int, **of: Any) -> SequenceRows:
    where = np.arange(first, end)
    slots = kv.take(where, model.geometry.num_layers)
    return SequenceRows(torch.from_numpy(where + 3), where, slots, kv, **of)


def new_kv(model: DecoderModel, own: list[int]) -> SequenceKV:
    layers = model.geometry.num_layers
    return SequenceKV(PAGE, layers, TOKENS, prefix=(), own=own, chunks=())


def test_no_layer_waits_for_the_device(model: DecoderModel, launches: Launches) -> None:
    pool = model.new_pool(2 * TOKENS // PAGE, 1, EngineSettings(page_tokens=PAGE), None)
    assert pool.own.keys.device.type == NOWHERE
    kvs = [new_kv(model, list(range(9))), new_kv(model, list(range(9, 17)))]
    prefill = [rows_of(model, kvs[0], 0, 40), rows_of(model, kvs[1], 0, 9, logits=Logits.ALL)]
    counts = []
    for groups in (prefill, [rows_of(model, kvs[0], 40, 41), rows_of(model, kvs[1], 9, 10)]):
        before = launches.count
        with Waits() as waits:
            logits = model.forward(groups, pool)
        assert waits.found == []
        # the last layer of many rows: those that are only written, and those that go on
        assert waits.sent <= 1 + 3 * 2, "tokens, and a layout and slots each time"
        assert all(part is not None and part.device.type == NOWHERE for part in logits)
        counts.append(launches.count - before)
    assert counts[1] >= 2 * model.geometry.num_layers, "the layers ran on Triton's kernels"


def test_a_captured_step_is_sent_in_one_copy(model: DecoderModel, launches: Launches) -> None:
    runner: Any = model.runner
    runner._graphed = GraphedLayers(runner._through, lambda piece: piece)
    pool = model.new_pool(2 * TOKENS // PAGE, 1, EngineSettings(page_tokens=PAGE), None)
    kvs = [new_kv(model, list(range(9))), new_kv(model, list(range(9, 17)))]
    with Waits():
        model.forward([rows_of(model, kvs[0], 0, 40), rows_of(model, kvs[1], 0, 9)], pool)
    for step in range(2):
        before, groups = (
            launches.count,
            [
                rows_of(model, kv, end + step, end + step + 1)
                for kv, end in zip(kvs, (40, 9), strict=True)
            ],
        )
        with Waits() as waits:
            model.forward(groups, pool)
        assert waits.found == [] and waits.sent == 2, "tokens, and all that the step's arrays hold"
        assert launches.count - before == 1 + 2 * model.geometry.num_layers
    assert len(pool.captured) == 1


def test_a_token_that_only_the_device_knows_is_run_from_there(
    model: DecoderModel, launches: Launches
) -> None:
    pool = model.new_pool(2 * TOKENS // PAGE, 1, EngineSettings(page_tokens=PAGE), None)
    kvs = [new_kv(model, list(range(9))), new_kv(model, list(range(9, 17)))]
    groups = [rows_of(model, kvs[0], 0, 1), rows_of(model, kvs[1], 0, 1)]
    groups[1].token_ids = torch.empty(1, dtype=torch.int64, device=NOWHERE)
    with Waits() as waits:
        model.forward(groups, pool)
    assert waits.found == []


def test_observers_add_up_on_the_device(model: DecoderModel, launches: Launches) -> None:
    pool = model.new_pool(2 * TOKENS // PAGE, 1, EngineSettings(page_tokens=PAGE), None)
    with Waits():
        asked, made = QuestionScores(TOKENS, 30), CaptureKV(model, [10], 20)
    moved = DeviationScores(TOKENS, [], 1)
    for observer, end in ((asked, 40), (made, 30), (moved, 30)):
        rows = rows_of(model, new_kv(model, list(range(9))), 0, end, observer=observer)
        with Waits() as waits:
            model.forward([rows], pool)
        assert rows.fault is None
        assert waits.found == []


def test_rows_are_ranked_without_a_wait() -> None:
    """Up to the one read of which they are."""
    nothing: Any = None
    chunks = [ReusedChunk(start, 20, nothing, (), ()) for start in (3, 23, 50)]
    task = RepairTask(tuple(chunks), 0.4)
    for selection in (RowSelection(24, 6, 2), RowSelection(24)):
        with Waits() as waits:
            found = ranked._ranked(task, selection, torch.zeros(TOKENS, device=NOWHERE))
        assert found.device.type == NOWHERE and len(found) == 25
        assert waits.found == [] and waits.sent == 1


def test_a_chunk_comes_up_without_a_wait(model: DecoderModel, launches: Launches) -> None:
    pool = model.new_pool(1, 1 << 20, EngineSettings(page_tokens=PAGE), None)
    layers, tokens = model.geometry.num_layers, 20
    kv = torch.zeros(kv_shape(model.geometry, tokens), device=NOWHERE)
    with Waits() as waits:
        table = model.facts.kinds[0].angles.table(tokens)
        angles = table.cos[:tokens], table.sin[:tokens]
        triton_records.place_chunk(pool.chunks, 0, kv, np.array([4, 0, 2]), angles)
    assert waits.found == [] and launches.count == 1 and len(kv) == layers


def test_what_waits_is_found() -> None:
    """Otherwise the tests above would show nothing."""
    there, pinned = torch.zeros(3, device=NOWHERE), partial(torch.zeros, 3, pin_memory=True)
    with Waits() as waits:
        pinned().to(NOWHERE, non_blocking=True)
        assert waits.found == []
        pinned().to(NOWHERE)
        torch.zeros(3).to(NOWHERE)
        torch.zeros(3).to(NOWHERE, non_blocking=True)
        there.copy_(torch.zeros(3))
    assert len(waits.found) == 4
    with torch.inference_mode(), Waits() as waits:
        pinned().to(NOWHERE, non_blocking=True)
        assert waits.found == [] and waits.sent == 1
        torch.zeros(3).to(NOWHERE, torch.float16, non_blocking=True)
        torch.zeros(3).to(there)
    assert len(waits.found) == 2
    reading: list[Callable[[], object]] = [
        lambda: there.sum().item(), lambda: bool(there.any()), there.cpu, there.tolist,
        there.nonzero, lambda: there[there > 0], lambda: torch.zeros(3).copy_(there),
    ]  # fmt: skip
    for reads in reading:
        with pytest.raises(RuntimeError, match="meta"):
            reads()


@pytest.mark.parametrize("penalised", [False, True])
def test_a_token_is_drawn_without_the_host(penalised: bool) -> None:
    wish = Sampling(logit_bias={3: 1.0}, presence_penalty=0.5, repetition_penalty=1.2)
    sampler = Sampler(wish if penalised else Sampling(), [1, 2, 3])
    logits = torch.zeros(50, device=NOWHERE)
    with Waits():
        sampler.pick(logits)  # what a request needs once is sent
    with Waits() as waits:
        token = sampler.pick(logits, torch.ones(50, dtype=torch.bool, device=NOWHERE))
        filtered_probabilities(logits, 0.7, 20, 0.9, 0.01)
    assert token.there.device.type == NOWHERE
    assert waits.found == [] and waits.sent == 0
