"""Few rows through captured layers and fixed arrays, against the same rows as they are.

Triton's programs run here under its interpreter, in the process of
`tests/kernels/test_triton_interpreter.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from chunkcache.config import EngineSettings
from chunkcache.engine.attention import Logits, SequenceRows
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.graphed import BUCKETS, GraphedLayers
from chunkcache.engine.packed import PackedLayers
from chunkcache.engine.pool import KVPool
from chunkcache.engine.sequence_kv import SequenceKV
from chunkcache_kernels import PortableStep

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="test_triton_interpreter.py runs these"
)

from chunkcache_kernels import triton_attend, triton_fixed, triton_kernels  # noqa: E402

TIGHT, PAGE, OWN_PAGES = 2e-4, 8, 17


class Tape(TorchDispatchMode):
    """The operations and launches of a piece, which can be done again over the very same memory:
    what a CUDA graph does. Python is not run again, so a row count, a grid or a buffer that changes
    would show.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))

        def again() -> None:
            found = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and found.data_ptr() != out.data_ptr():
                out.copy_(found)  # else it is a view, or several

        self.done.append(again)
        return out

    def replay(self) -> None:
        for again in self.done:
            again()


class Taping:
    """Captures pieces on tapes, and counts."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0
        self.tape: Tape | None = None

    def __call__(self, piece: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        with Tape() as tape:
            self.tape = tape
            piece()
        self.tape = None

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay

    def program(self, kernel: Any) -> Any:
        """A Triton program whose launches go on the tape too."""

        class Program:
            def __getitem__(_, grid: tuple[int, ...]) -> Callable[..., None]:
                def launch(*args: Any, **kwargs: Any) -> None:
                    with _disable_current_modes():
                        kernel[grid](*args, **kwargs)
                    if self.tape is not None:
                        self.tape.done.append(lambda: kernel[grid](*args, **kwargs))

                return launch

        return Program()


@pytest.fixture(params=["qwen3"])
def model(request: Any, build: Callable[..., DecoderModel]) -> DecoderModel:
    made = build(request.param, num_hidden_layers=2)
    return made.run_by(PackedLayers(made.hf, made.facts))


@pytest.fixture
def taping(monkeypatch: pytest.MonkeyPatch) -> Taping:
    made = Taping()
    for module, name in (
        (triton_attend, "attend_kernel"), (triton_attend, "bound_kernel"),
        (triton_kernels, "write_kernel"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, made.program(getattr(module, name)))
    monkeypatch.setattr(KVPool, "runs_triton", lambda *_: True)
    monkeypatch.setattr(triton_fixed, "programs", lambda _: 4)  # interpreted, each takes its time
    return made


def captured_by(model: DecoderModel, taping: Taping) -> DecoderModel:
    """The same model, its few rows run from captured pieces."""
    runner = PackedLayers(model.hf, model.facts)
    runner._graphed = GraphedLayers(runner._through, taping)
    return model.run_by(runner)


def new_pool(model: DecoderModel, pages: int) -> KVPool:
    pool = model.new_pool(pages, 1, EngineSettings(page_tokens=PAGE), None)
    pool.own.keys.fill_(torch.nan)
    pool.own.values.fill_(torch.nan)
    return pool


def by_torch(pool: KVPool, layout: Any, heads: Any, rotary: Any) -> PortableStep:
    return PortableStep(layout, pool.arenas, heads, rotary)


def rows_of(kv: SequenceKV, where: np.ndarray, layers: int, seed: int) -> SequenceRows:
    ids = torch.from_numpy((where * 7 + seed * 5) % 300 + 3)
    return SequenceRows(ids, where, kv.take(where, layers), kv, logits=Logits.LAST)


def decoded(
    model: DecoderModel, by: DecoderModel, ends: list[int], batches: list[int]
) -> torch.Tensor:
    """Logits of steps by another model of one row each of so many sequences, behind prompts of
    different lengths.
    """
    layers, ends = model.geometry.num_layers, list(ends)
    pool = new_pool(model, OWN_PAGES * len(ends))
    owned = np.arange(OWN_PAGES * len(ends)).reshape(OWN_PAGES, -1).T.tolist()
    kvs = [
        SequenceKV(PAGE, layers, OWN_PAGES * PAGE, prefix=(), own=own, chunks=()) for own in owned
    ]
    prompts = [rows_of(kv, np.arange(end), layers, n) for n, (kv, end) in
               enumerate(zip(kvs, ends, strict=True))]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVPool, "runs_triton", lambda *_: False)
        model.forward(prompts, pool)
    found: list[torch.Tensor | None] = []
    for batch in batches:
        where = [np.arange(end, end + 1) for end in ends[:batch]]
        found += by.forward([rows_of(kvs[n], at, layers, n) for n, at in enumerate(where)], pool)
        ends[:batch] = [end + 1 for end in ends[:batch]]
    return torch.stack([part for part in found if part is not None])


# one that begins another run of pages, one that begins a page, a short one
ENDS = [127, 8, 5]


# biases; norms of queries and keys
@pytest.mark.parametrize("model", ["qwen2", "qwen3"], indirect=True)
def test_steps_of_other_lengths_are_replayed_and_are_what_they_are_alone(
    model: DecoderModel, taping: Taping
) -> None:
    batches = [1, 3, 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVPool, "runs_triton", lambda *_: False)
        plain = decoded(model, model, ENDS, batches)
    found = decoded(model, captured_by(model, taping), ENDS, batches)
    assert (found - plain).abs().max() < TIGHT
    assert taping.captured == 2, "once for each bucket: 1 and 4"
    assert taping.replayed == len(batches)


def test_a_step_that_finds_no_room_is_captured_again_with_more(
    model: DecoderModel, taping: Taping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_fixed, "_FEWEST_PAGES", 1)
    monkeypatch.setattr(triton_fixed, "_FEWEST_PARTS", 1)
    ours, ends, steps = captured_by(model, taping), [6, 127], 3
    wanted = decoded(model, model, ends, [2] * steps)
    found = decoded(model, ours, ends, [2] * steps)  # a page more, and a run
    assert torch.equal(found, wanted)
    assert taping.captured == 2 and taping.replayed == steps


def test_longer_tables_of_angles_are_captured_again(model: DecoderModel, taping: Taping) -> None:
    ours, layers = captured_by(model, taping), model.geometry.num_layers
    pool, angles, found = new_pool(model, 1), model.facts.kinds[0].angles, []
    assert angles is not None
    for number in range(3):
        if number == 2:
            angles.table(2 * len(angles.table(1).cos))
        kv = SequenceKV(PAGE, layers, PAGE, prefix=(), own=[0], chunks=())
        found += ours.forward([rows_of(kv, np.arange(3), layers, 0)], pool)
        assert taping.captured == (2 if number == 2 else 1)
    assert all(part is not None and torch.equal(part, found[0]) for part in found)


def test_rows_that_enter_and_leave_half_way_are_captured_too(
    model: DecoderModel, taping: Taping
) -> None:
    layers = model.geometry.num_layers
    ours = captured_by(model, taping)

    def states(model: DecoderModel, pool: KVPool) -> torch.Tensor:
        kv = SequenceKV(PAGE, layers, PAGE, prefix=(), own=[0], chunks=())
        rows = rows_of(kv, np.arange(5), layers, 0)
        hidden = model.runner.embed(rows.token_ids)
        with torch.inference_mode():
            step = model._step([rows], layers, pool)
            for first, end in ((0, 1), (1, layers)):
                hidden = model.runner.run(first, end, hidden, step)
        return hidden

    with torch.inference_mode():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KVPool, "runs_triton", lambda *_: False)
            wanted, pool = states(model, new_pool(model, 1)), new_pool(model, 1)
        for _ in range(2):
            assert (states(ours, pool) - wanted).abs().max() < TIGHT
    assert taping.captured == 2 and taping.replayed == 4


def test_what_is_not_captured_runs_as_it_is(
    model: DecoderModel, taping: Taping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many rows, many of one sequence, rows that are observed, layers that are still coming up."""
    monkeypatch.setattr(KVPool, "bind", by_torch)
    ours, layers = captured_by(model, taping), model.geometry.num_layers

    class Observer:
        looked = 0

        def look(self, view: Any) -> None:
            self.looked += 1

    class Coming(SequenceKV):
        def wait_for(self, layer: int, last_position: int) -> int:
            return layer + 1

    observer, heads = Observer(), model.facts.kinds[0].heads
    group = heads.heads // heads.kv_heads
    cases = [(BUCKETS[-1] + 1, None, SequenceKV), (-(-48 // group), None, SequenceKV),
             (4, observer, SequenceKV), (4, None, Coming)]  # fmt: skip
    for count, watching, kind in cases:
        kv = kind(PAGE, layers, 5 * PAGE, prefix=(), own=list(range(5)), chunks=())
        rows = rows_of(kv, np.arange(count), layers, 0)
        rows.observer, rows.logits = watching, Logits.ALL
        (found,) = ours.forward([rows], new_pool(model, 5))
        assert rows.fault is None and found is not None and found.isfinite().all()
    assert observer.looked == layers
    assert taping.captured == 0
