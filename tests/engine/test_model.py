"""Rows through some of the layers, and on from there, against rows through all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig
from transformers.utils import logging as bars

from chunkcache.config import EngineSettings
from chunkcache.engine.attention import KeptRows, Logits, SequenceRows
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.loading import load_model
from chunkcache.engine.model import wrap_model
from chunkcache.engine.pool import KVPool, open_team
from chunkcache.engine.sequence_kv import SequenceKV

TIGHT = 2e-4
LAYERS, PAGE, PAGES = 5, 8, 9
IDS = torch.randint(3, 380, (20,), generator=torch.Generator().manual_seed(3))


# each layer has an input of its own, and the last two attend to keys of the second and the third
HANDS_ON = Gemma4TextConfig(
    vocab_size=384, hidden_size=48, intermediate_size=64, num_hidden_layers=LAYERS,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, global_head_dim=16,
    hidden_size_per_layer_input=8, vocab_size_per_layer_input=384, num_kv_shared_layers=2,
    layer_types=["sliding_attention", "full_attention"] + ["sliding_attention"] * 2
    + ["full_attention"], sliding_window=7, max_position_embeddings=512, pad_token_id=0,
)  # fmt: skip


@pytest.fixture(params=["plain", "hands on"])
def model(request: Any, build: Callable[..., DecoderModel], tokenizer: Any) -> DecoderModel:
    if request.param == "plain":
        return build(num_hidden_layers=LAYERS)
    torch.manual_seed(5)
    network = Gemma4ForCausalLM(HANDS_ON)
    return wrap_model(network, tokenizer, fingerprint=b"hands on", name="hands-on")


@pytest.fixture(params=["compiled", "portable"])
def pool(request: Any, model: DecoderModel) -> Iterator[KVPool]:
    """Poisoned pages, with a team of threads or without."""
    team = None
    if request.param == "compiled":
        team = open_team(model, PAGE)
        if team is None:
            pytest.skip("no C compiler here")
    pool = model.new_pool(PAGES, 1 << 20, EngineSettings(page_tokens=PAGE), team)
    for part in (pool.own.keys, pool.own.values):
        part.fill_(float("nan"))
    yield pool
    if team is not None:
        team.close()


def sequence(number: int) -> SequenceKV:
    """Twenty positions with three pages of their own, out of order."""
    own = [3 * number + page for page in (2, 0, 1)]
    return SequenceKV(PAGE, LAYERS, 20, prefix=(), own=own, chunks=())


def rows(first: int, end: int, kv: SequenceKV, **options: Any) -> SequenceRows:
    where = np.arange(first, end)
    slots = kv.take(where, options.get("end_layer", LAYERS))
    return SequenceRows(IDS[where], where, slots, kv, logits=Logits.NONE, **options)


def at_once(model: DecoderModel, pool: KVPool, kv: SequenceKV) -> torch.Tensor:
    whole = rows(0, 20, kv)
    whole.logits = Logits.ALL
    (logits,) = model.forward([whole], pool)
    assert logits is not None
    return logits


@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
@pytest.mark.parametrize("cut", [1, 10, 19])
def test_rows_in_parts_are_rows_at_once(
    model: DecoderModel, pool: KVPool, collect_kv: Callable[..., Any], layer: int, cut: int
) -> None:
    whole, parts, other = map(sequence, range(3))
    expected = at_once(model, pool, whole)
    kept = KeptRows(layer, np.arange(20))
    for part in ((0, cut), (cut, 20)):  # as the scheduler may split them
        (nothing,) = model.forward([rows(*part, parts, end_layer=layer, keep=kept)], pool)
        assert nothing is None
    for first, end in ((0, cut), (cut, 20)):
        rest = rows(first, end, parts, first_layer=layer, hidden=kept.states(np.arange(first, end)))
        rest.logits = Logits.ALL
        # another sequence runs beside it, through all layers
        logits, beside = model.forward([rest, rows(0, 20, other)], pool)
        assert beside is None and logits is not None
        assert (logits - expected[first:end]).abs().max() < TIGHT
    seen = [collect_kv(model, pool, kv, 20) for kv in (whole, parts, other)]
    assert (seen[1] - seen[0]).abs().max() < TIGHT
    assert (seen[2] - seen[0]).abs().max() < TIGHT


@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_rows_join_others_of_their_sequence_half_way(
    model: DecoderModel, pool: KVPool, layer: int
) -> None:
    """The first rows begin in the step in which the last ones go on: they are seen by them."""
    expected = at_once(model, pool, sequence(1))
    kept, kv = KeptRows(layer, np.arange(12, 20)), sequence(0)
    model.forward([rows(0, 12, kv)], pool)
    model.forward([rows(12, 20, kv, keep=kept)], pool)
    for part in (pool.own.keys, pool.own.values):
        part[layer:].fill_(float("nan"))
    last = rows(12, 20, kv, first_layer=layer, hidden=kept.states(np.arange(12, 20)))
    last.logits = Logits.LAST
    nothing, logits = model.forward([rows(0, 12, kv), last], pool)
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
