"""A device without memory for a step: one request is refused, the others are answered as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from chunkcache.config import EngineSettings
from chunkcache.engine import decoder
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.outcome import Outcome
from chunkcache.errors import ConfigError, DeviceMemoryFull
from chunkcache.protocol import Sampling
from chunkcache_kernels import Arena


def run_out(request: Any) -> Outcome:
    return next(e for e in request.events() if isinstance(e, Outcome))


def refuse_more_than(rows: int, patch: pytest.MonkeyPatch, *, after_running: bool) -> list[int]:
    """No step of more rows fits; how many rows those had that were tried."""
    true, tried = DecoderModel.forward, list[int]()

    def forward(model: DecoderModel, batch: Any, *rest: Any) -> Any:
        found = true(model, batch, *rest) if after_running else None
        if sum(map(len, batch)) > rows:
            tried.append(sum(map(len, batch)))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return true(model, batch, *rest) if found is None else found

    patch.setattr(DecoderModel, "forward", forward)
    return tried


@pytest.mark.parametrize("after_running", [False, True])  # some of its layers may have run
def test_what_finds_no_memory_is_refused_and_its_pages_are_free(
    bench: Any, monkeypatch: pytest.MonkeyPatch, after_running: bool
) -> None:
    records = {1: bench.record(bench.tokens(30, 1))}
    prompt = bench.prompt([bench.tokens(30, 1)])
    alone = bench.answer(prompt, records, "all", salt=b"alone")
    with monkeypatch.context() as patch:
        tried = refuse_more_than(9, patch, after_running=after_running)
        with pytest.raises(DeviceMemoryFull, match=r"engine\.step_tokens") as caught:
            bench.answer(prompt, records, "all", salt=b"refused")
    assert len(tried) == 1, "it was not tried again"
    assert (caught.value.status, caught.value.code) == (503, "device_memory_full")
    bench.wait_until_idle()
    assert bench.engine.chunks.leased == 0
    again = bench.answer(prompt, records, "all", salt=b"again")
    assert again.token_ids == alone.token_ids


@pytest.mark.parametrize("after_running", [False, True])
def test_those_beside_it_are_answered_as_they_are_alone(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    after_running: bool,
) -> None:  # fmt: skip
    """One of them is decoding, in two choices, one is half-way through a probe."""
    bench = open_bench(tiny, step_tokens=64)
    records = {1: bench.record(bench.tokens(30, 1))}
    probed, long = bench.prompt([bench.tokens(30, 1)]), bench.prompt([bench.tokens(150, 2)])
    wish = Sampling(temperature=1.2, seed=4, n=2, ignore_eos=True)

    def ask(salt: bytes) -> tuple[Any, Any]:
        short = bench.submit(
            bench.prompt([]), {}, exact_only=True, sampling=wish, max_new_tokens=40, salt=salt
        )
        return short, bench.submit(probed, records, "question", budget=0.5, salt=salt)

    alone = [run_out(request) for request in ask(b"alone")]
    refuse_more_than(50, monkeypatch, after_running=after_running)
    decoding, repairing = ask(b"beside")
    doomed = bench.submit(long, {}, exact_only=True, salt=b"doomed")
    with pytest.raises(DeviceMemoryFull):
        run_out(doomed)
    outcomes = [run_out(decoding), run_out(repairing)]
    for outcome, expected in zip(outcomes, alone, strict=True):
        ids = [choice.token_ids for choice in outcome.choices]
        assert ids == [choice.token_ids for choice in expected.choices]


def test_pages_that_do_not_fit_are_a_setting_that_is_too_large(
    tiny: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(Arena):
        @classmethod
        def empty(cls, num_layers: int, num_pages: int, *shape: Any, **of: Any) -> Any:
            if num_pages > 50:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().empty(num_layers, num_pages, *shape, **of)

    monkeypatch.setattr(decoder, "Arena", Small)
    tiny.new_pool(50, 0, EngineSettings(), None)
    with pytest.raises(ConfigError, match=r"engine\.kv_capacity_bytes: got \d+"):
        tiny.new_pool(51, 0, EngineSettings(), None)
