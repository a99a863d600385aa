"""Layers packed into fewer operations against transformers' own modules, by row and by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from chunkcache.config import EngineSettings
from chunkcache.engine import core, decoder
from chunkcache.engine.attention import Logits, SequenceRows
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.layers import ModuleLayers
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.packed import FEW_ROWS, PackedLayers, narrowest, packable, to_int8
from chunkcache.engine.pool import KVPool, open_team
from chunkcache.engine.sequence_kv import SequenceKV
from chunkcache_kernels.structs import TYPES

TIGHT = 2e-4  # fp32 logits of the tiny models have a spread of about 5
PAGE, TOKENS = 8, 70
IDS = torch.randint(3, 380, (TOKENS,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def models(build: Callable[..., DecoderModel]) -> Callable[[str], DecoderModel]:
    made: dict[str, DecoderModel] = {}
    return lambda family: made.setdefault(family, build(family))


@pytest.fixture(params=["team", "no team"])
def without_team(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether engines of this test have no compiled kernels."""
    alone = bool(request.param == "no team")
    if alone:
        monkeypatch.setattr(core, "open_team", lambda *_: None)
    return alone


@pytest.fixture
def new_pool(without_team: bool) -> Iterator[Callable[[DecoderModel], KVPool]]:
    """Poisoned pages, and a team if this test has one."""
    teams = []

    def make(model: DecoderModel) -> KVPool:
        team = None if without_team else open_team(model, PAGE)
        if team is None and not without_team:
            pytest.skip("no C compiler here")
        teams.append(team)
        pool = model.new_pool(2 * TOKENS // PAGE, 1, EngineSettings(page_tokens=PAGE), team)
        pool.own.keys.fill_(torch.nan)
        pool.own.values.fill_(torch.nan)
        return pool

    yield make
    for team in teams:
        if team is not None:
            team.close()


def logits_in_steps(model: DecoderModel, pool: KVPool, cuts: list[int]) -> torch.Tensor:
    """fp32 `[tokens, vocab]`: the tokens, some rows at a time."""
    own = list(range(-(-TOKENS // PAGE)))[::-1]
    kv = SequenceKV(PAGE, model.geometry.num_layers, TOKENS, prefix=(), own=own, chunks=())
    parts = []
    for first, end in zip([0, *cuts], [*cuts, TOKENS], strict=True):
        where = np.arange(first, end)
        slots = kv.take(where, model.geometry.num_layers)
        rows = SequenceRows(IDS[where], where, slots, kv, logits=Logits.ALL)
        parts += model.forward([rows], pool)
    return torch.cat([part for part in parts if part is not None])


def as_modules(model: DecoderModel) -> DecoderModel:
    return model.run_by(ModuleLayers(model.hf, model.facts))


def test_packed_layers_are_transformers_own(
    models: Callable[[str], DecoderModel], new_pool: Callable[..., KVPool], family: str
) -> None:
    model = models(family)
    assert packable(model.hf) and isinstance(model.runner, PackedLayers)
    pool = new_pool(model)
    twin = logits_in_steps(as_modules(model), new_pool(model), [])
    assert twin.std() > 1
    few = [*np.cumsum(range(1, 10)).tolist(), 45 + FEW_ROWS]  # 1..9, 16 and 9 rows
    for cuts in ([], few, [17, 34, 51]):
        ours = logits_in_steps(model, pool, cuts)
        assert (ours - twin).abs().max() < TIGHT, cuts


@pytest.mark.parametrize("count", range(1, FEW_ROWS + 2))
def test_any_number_of_few_rows(
    models: Callable[[str], DecoderModel], new_pool: Callable[..., KVPool], count: int
) -> None:
    model = models("qwen3")
    twin = logits_in_steps(as_modules(model), new_pool(model), [])
    ours = logits_in_steps(model, new_pool(model), [TOKENS - count])
    assert (ours[-count:] - twin[-count:]).abs().max() < TIGHT


def test_few_rows_run_in_one_call(
    models: Callable[[str], DecoderModel],
    new_pool: Callable[..., KVPool],
    without_team: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the tests of few rows would show nothing of it."""
    model = models("llama")
    runner: Any = model.runner
    steps: list[int] = []
    true = type(runner._few).run

    def run(few: Any, first: int, end: int, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        steps.append(len(hidden))
        return true(few, first, end, hidden, *rest)

    monkeypatch.setattr(type(runner._few), "run", run)
    logits_in_steps(model, new_pool(model), [30, 30 + FEW_ROWS, 31 + FEW_ROWS])
    assert steps == ([] if without_team else [FEW_ROWS, 1])


def test_a_batch_is_token_for_token_what_each_is_alone(
    models: Callable[[str], DecoderModel],
    open_bench: Callable[..., Any],
    without_team: bool,
    family: str,
) -> None:
    """Also beside others that read the same chunks elsewhere, and against transformers' modules."""
    answers = []
    for model in (models(family), as_modules(models(family))):
        bench = open_bench(model, step_tokens=40)
        chunks = [bench.tokens(n, seed) for seed, n in enumerate([20, 1, 33])]
        records = [bench.record(ids) for ids in chunks]
        cases = [(0, 1, 2), (2, 0), (1, 2, 0), (), (2, 2)]

        def ask(order: tuple[int, ...], salt: bytes, of: Any = (bench, chunks, records)) -> Any:
            bench, chunks, records = of
            return bench.submit(
                bench.prompt([chunks[i] for i in order]),
                {at + 1: records[i] for at, i in enumerate(order)},
                "first_k", budget=0.2, salt=salt, max_new_tokens=10,
            )  # fmt: skip

        def result(request: Any) -> Outcome:
            return next(e for e in request.events() if isinstance(e, Outcome))

        alone = [result(ask(order, b"%d" % i)) for i, order in enumerate(cases)]
        together = [ask(order, b"together %d" % i) for i, order in enumerate(cases)]
        for request, expected in zip(together, alone, strict=True):
            outcome = result(request)
            assert outcome.token_ids == expected.token_ids
            assert (outcome.first_logits - expected.first_logits).abs().max() < TIGHT
        answers.append([outcome.token_ids for outcome in alone])
    assert answers[0] == answers[1]


def test_a_weight_is_read_in_the_fewest_bits_that_hold_it() -> None:
    made = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))
    assert narrowest(made).dtype is torch.float32
    assert narrowest(made.bfloat16().float()).dtype is torch.bfloat16
    assert narrowest(made.half().float()).dtype is torch.float16
    for exact in (made, made.bfloat16().float(), made.half().float()):
        assert torch.equal(narrowest(exact).float(), exact)
    one_off = made.bfloat16().float()
    one_off[3, 5] += 1e-7
    assert narrowest(one_off) is one_off
    assert narrowest(torch.full((2, 8), 1e-30)).dtype is torch.float32  # half makes nothing of it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_model_loses_no_bit_by_being_packed(
    build: Callable[..., DecoderModel], new_pool: Callable[..., KVPool], dtype: torch.dtype
) -> None:
    """Of a checkpoint in 16 bits, run in fp32: read in 16 bits, and what it was."""
    model = build("qwen2")
    if dtype is not torch.float32:
        with torch.no_grad():
            for parameter in model.hf.parameters():
                parameter.copy_(parameter.to(dtype).float())
    runner = PackedLayers(model.hf, model.facts)
    assert runner._few is not None
    kept = {layer.qkv.type for layer in runner._few._layers} | {runner._few.head.type}
    assert kept == {TYPES[dtype]}
    twin = logits_in_steps(as_modules(model), new_pool(model), [])
    ours = logits_in_steps(model.run_by(runner), new_pool(model), [10, 11, 13, 29])
    assert (ours - twin).abs().max() < TIGHT


def test_int8_is_one_model_for_many_rows_and_few(
    build: Callable[..., DecoderModel], new_pool: Callable[..., KVPool], family: str
) -> None:
    """Its modules hold the rounded weights, so that transformers itself is the twin."""
    model = build(family)
    before = logits_in_steps(as_modules(model), new_pool(model), [])
    rounded = model.run_by(PackedLayers(model.hf, model.facts, int8=True))
    twin = logits_in_steps(as_modules(model), new_pool(model), [])
    assert (twin - before).abs().max() > 10 * TIGHT  # it is another model
    for cuts in ([], [10, 11, 13, 29]):
        ours = logits_in_steps(rounded, new_pool(model), cuts)
        assert (ours - twin).abs().max() < TIGHT


def test_to_int8_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(7, 30, generator=torch.Generator().manual_seed(2))
    weight[3] = 0.0
    numbers, scales = to_int8(weight)
    assert numbers.dtype is torch.int8 and scales.shape == (7,) and bool((scales > 0).all())
    error = (numbers * scales[:, None] - weight).abs()
    assert bool((error <= scales[:, None] * 0.5001).all())
    assert numbers.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127]


@pytest.mark.parametrize("as_is", [True, False], ids=["packed", "modules"])
def test_rows_without_logits_are_dropped_in_the_last_layer(
    models: Callable[[str], DecoderModel],
    new_pool: Callable[..., KVPool],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    as_is: bool,
) -> None:
    """The same logits and, in every layer, the same K and V as when every row runs to the end."""
    model = models(family) if as_is else as_modules(models(family))
    end, pages = model.geometry.num_layers, 2 * TOKENS // PAGE
    run, seen = model.runner.run, []

    def counted(first: int, last: int, hidden: torch.Tensor, rows: Any) -> torch.Tensor:
        seen.append((last, len(hidden)))
        return run(first, last, hidden, rows)

    monkeypatch.setattr(type(model.runner), "run", lambda _, *given: counted(*given))

    def forward(fewest: int) -> tuple[list[torch.Tensor | None], Any]:
        monkeypatch.setattr(decoder, "FEWEST_DROPPED", fewest)
        pool, groups = new_pool(model), []
        cuts = [(0, 33, Logits.LAST), (0, 20, Logits.NONE), (20, 25, Logits.ALL)]
        kvs = [
            SequenceKV(PAGE, end, TOKENS, prefix=(), own=own, chunks=())
            for own in (list(range(9)), list(range(9, pages)))
        ]
        for (first, last, logits), kv in zip(cuts, (kvs[0], kvs[1], kvs[1]), strict=True):
            where = np.arange(first, last)
            groups.append(SequenceRows(IDS[where], where, kv.take(where, end), kv, logits=logits))
        found = model.forward(groups, pool)
        return found, [pool.own.read_rows(layer, np.arange(pages)) for layer in range(end)]

    every, kept = forward(10**6)
    assert {count for last, count in seen if last == end} == {58}
    seen.clear()
    some, also = forward(1)
    assert (end, 6) in seen, "nothing was dropped"
    assert every[1] is None and some[1] is None
    for a, b in ((every[0], some[0]), (every[2], some[2])):
        assert a is not None and b is not None and (a - b).abs().max() < TIGHT
    for before, after in zip(kept, also, strict=True):
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=TIGHT, equal_nan=True)
