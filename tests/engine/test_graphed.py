"""Few rows through captured pieces and buckets, against the same rows as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chunkcache.config import EngineSettings
from chunkcache.engine import graphed
from chunkcache.engine.attention import Logits, SequenceRows
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.graphed import BUCKETS, GraphedLayers
from chunkcache.engine.packed import PackedLayers, _WithoutTeam
from chunkcache.engine.pool import KVPool
from chunkcache.engine.sequence_kv import SequenceKV

TIGHT, PAGE = 2e-4, 8


class Tape(TorchDispatchMode):
    """The operations of a piece, which can be done again over the very same memory: what a CUDA
    graph does. Python is not run again, so a row count or a buffer that changes would show.
    """

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self._done:
            again = func(*args, **kwargs)
            if isinstance(out, torch.Tensor) and again.data_ptr() != out.data_ptr():
                out.copy_(again)  # else it is a view, or several


class Taping:
    """Captures pieces on tapes, and counts."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, piece: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        with Tape() as tape:
            piece()

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def model(request: Any, build: Callable[..., DecoderModel]) -> DecoderModel:
    made = build(request.param)
    return made.run_by(PackedLayers(made.hf, made.facts))


def captured_by(model: DecoderModel) -> tuple[DecoderModel, Taping]:
    """The same model, its few rows run from captured pieces."""
    runner, taping = PackedLayers(model.hf, model.facts), Taping()
    between = _WithoutTeam(runner, runner._layers[0])
    runner._graphed = GraphedLayers(between, len(runner._layers), taping)
    return model.run_by(runner), taping


def new_pool(model: DecoderModel, pages: int) -> KVPool:
    pool = model.new_pool(pages, 1, EngineSettings(page_tokens=PAGE), None)
    pool.own.keys.fill_(torch.nan)
    pool.own.values.fill_(torch.nan)
    return pool


def decoded(model: DecoderModel, batches: list[int]) -> torch.Tensor:
    """Logits of steps of one row each of so many sequences, behind prompts of different lengths."""
    count, layers = max(batches), model.geometry.num_layers
    pool = new_pool(model, 3 * count)
    kvs = [
        SequenceKV(PAGE, layers, 3 * PAGE, prefix=(), own=[n, n + count, n + 2 * count], chunks=())
        for n in range(count)
    ]

    def rows(number: int, where: np.ndarray) -> SequenceRows:
        ids = torch.from_numpy((where * 7 + number * 5) % 300 + 3)
        kv = kvs[number]
        return SequenceRows(ids, where, kv.take(where, layers), kv, logits=Logits.LAST)

    ends = [3 + n % 9 for n in range(count)]
    found = model.forward([rows(n, np.arange(ends[n])) for n in range(count)], pool)
    for batch in batches:
        groups = [rows(n, np.arange(ends[n], ends[n] + 1)) for n in range(batch)]
        found += model.forward(groups, pool)
        ends[:batch] = [end + 1 for end in ends[:batch]]
    return torch.stack([part for part in found if part is not None])


def test_a_bucket_that_is_filled_up_is_what_its_rows_are_alone(
    model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [1, 3, 2, 5, 1, 8, 7, 9, 3]
    plain = decoded(model, batches)
    ours, taping = captured_by(model)
    true = graphed.GraphedLayers._bucket

    def poisoned(self: Any, *args: Any) -> Any:
        bucket = true(self, *args)
        for buffer in (bucket.hidden, bucket.qkv, bucket.attended):
            buffer.fill_(torch.nan)  # what nobody wrote in this step must not be read
        return bucket

    monkeypatch.setattr(graphed.GraphedLayers, "_bucket", poisoned)
    assert (decoded(ours, batches) - plain).abs().max() < TIGHT
    layers, buckets = model.geometry.num_layers, {1, 4, 2, 8, 16}
    # of the prompts, the last rows run alone through the last layer
    assert taping.captured == len(buckets) * (1 + layers) + 1, "once for each bucket"
    assert taping.replayed == len(batches) * (1 + layers) + 2


def test_rows_that_enter_and_leave_half_way_are_captured_too(model: DecoderModel) -> None:
    layers = model.geometry.num_layers
    ours, taping = captured_by(model)

    def states(model: DecoderModel) -> torch.Tensor:
        pool = new_pool(model, 2)
        kv = SequenceKV(PAGE, layers, PAGE, prefix=(), own=[0], chunks=())
        where = np.arange(5)
        rows = SequenceRows(torch.from_numpy(where + 3), where, kv.take(where, layers), kv)
        hidden = model.runner.embed(rows.token_ids)
        with torch.inference_mode():
            step = model._step([rows], layers, pool)
            for first, end in ((0, 1), (1, layers)):
                hidden = model.runner.run(first, end, hidden, step)
        return hidden

    for _ in range(2):
        assert (states(ours) - states(model)).abs().max() < TIGHT
    assert taping.captured == 2 + layers


def test_many_rows_and_rows_that_are_observed_run_as_they_are(model: DecoderModel) -> None:
    ours, taping = captured_by(model)
    layers = model.geometry.num_layers

    class Observer:
        looked = 0

        def look(self, view: Any) -> None:
            self.looked += 1

    for count, observer in ((BUCKETS[-1] + 1, None), (4, Observer())):
        kv = SequenceKV(PAGE, layers, 5 * PAGE, prefix=(), own=list(range(5)), chunks=())
        where = np.arange(count)
        rows = SequenceRows(torch.from_numpy(where + 3), where, kv.take(where, layers), kv)
        rows.observer, rows.logits = observer, Logits.ALL
        ours.forward([rows], new_pool(model, 5))
        assert rows.fault is None
    assert isinstance(observer, Observer) and observer.looked == layers
    assert taping.captured == 0
