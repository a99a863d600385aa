"""Rows through some of the layers, and on from there, against rows through all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging as bars

from chunkcache.engine.attention import KeptRows, KVPool, Logits, SequenceRows
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.model import load_model

TIGHT = 2e-4
LAYERS = 5
IDS = torch.randint(3, 380, (20,), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model(build: Callable[..., DecoderModel]) -> DecoderModel:
    return build(num_hidden_layers=LAYERS)


def poisoned(model: DecoderModel) -> KVPool:
    pool = model.new_pool(64)
    for layer in (*pool.keys, *pool.values):
        layer.fill_(float("nan"))
    return pool


def rows(first: int, end: int, *, base: int = 0, **options: object) -> SequenceRows:
    where = torch.arange(first, end)
    return SequenceRows(IDS[where], where, base + torch.arange(20), logits=Logits.NONE, **options)  # type: ignore[arg-type]


def at_once(model: DecoderModel, pool: KVPool, base: int) -> torch.Tensor:
    whole = rows(0, 20, base=base)
    whole.logits = Logits.ALL
    (logits,) = model.forward([whole], pool)
    assert logits is not None
    return logits


@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
@pytest.mark.parametrize("cut", [1, 10, 19])
def test_rows_in_parts_are_rows_at_once(model: DecoderModel, layer: int, cut: int) -> None:
    pool = poisoned(model)
    expected = at_once(model, pool, base=20)
    kept = KeptRows(layer, np.arange(20))
    for part in ((0, cut), (cut, 20)):  # as the scheduler may split them
        (nothing,) = model.forward([rows(*part, end_layer=layer, keep=kept)], pool)
        assert nothing is None
    for first, end in ((0, cut), (cut, 20)):
        rest = rows(first, end, first_layer=layer, hidden=kept.states(np.arange(first, end)))
        rest.logits = Logits.ALL
        # another sequence runs beside it, through all layers
        logits, beside = model.forward([rest, rows(0, 20, base=40)], pool)
        assert beside is None and logits is not None
        assert (logits - expected[first:end]).abs().max() < TIGHT
    for keys, values in zip(pool.keys, pool.values, strict=True):
        for at in (0, 40):
            assert (keys[at : at + 20] - keys[20:40]).abs().max() < TIGHT
            assert (values[at : at + 20] - values[20:40]).abs().max() < TIGHT


@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_rows_join_others_of_their_sequence_half_way(model: DecoderModel, layer: int) -> None:
    """The first rows begin in the step in which the last ones go on: they are seen by them."""
    pool = poisoned(model)
    expected = at_once(model, pool, base=20)
    kept = KeptRows(layer, np.arange(12, 20))
    model.forward([rows(0, 12)], pool)
    model.forward([rows(12, 20, keep=kept)], pool)
    for part in (*pool.keys[layer:], *pool.values[layer:]):
        part[:20].fill_(float("nan"))
    last = rows(12, 20, first_layer=layer, hidden=kept.states(np.arange(12, 20)))
    last.logits = Logits.LAST
    nothing, logits = model.forward([rows(0, 12), last], pool)
    assert nothing is None and logits is not None
    assert (logits - expected[-1]).abs().max() < TIGHT


def test_rows_that_were_not_kept_are_refused(model: DecoderModel) -> None:
    kept = KeptRows(2, np.array([3, 4, 7]))
    kept.parts.append(torch.zeros(3, 8))
    assert kept.states(np.array([3, 7])).shape == (2, 8)
    for wrong in ([5], [3, 8], [2]):
        with pytest.raises(ValueError, match="not all among those kept"):
            kept.states(np.array(wrong))


def test_local_weights_are_read_without_a_bar(
    tiny_settings: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar in a server's log is noise; the switch is the whole process's, and is put back."""
    shown = bars.is_progress_bar_enabled()
    bars.enable_progress_bar()
    try:
        load_model(tiny_settings())
        assert "Loading weights" not in capfd.readouterr().err
        assert bars.is_progress_bar_enabled()
    finally:
        if not shown:
            bars.disable_progress_bar()
