"""The gate passes every supported family, and fails on every way of getting reuse wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

import chunkcache_kernels as kernels
from chunkcache.engine import gate
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.model import refuse_unsupported
from chunkcache.errors import UnsupportedModel


def test_every_family_passes(build: Callable[..., DecoderModel], family: str) -> None:
    verdict = gate.run_gate(build(family))
    assert verdict.problems == ()
    assert verdict.serves and verdict.reuses
    assert verdict.figures["identity"] == 0.0
    assert verdict.figures["repair_all"] <= 1e-4 * max(1.0, verdict.figures["logits_std"])


def test_a_bf16_model_is_judged_in_fp32_and_comes_back_unchanged(
    build: Callable[..., DecoderModel],
) -> None:
    model = build(dtype=torch.bfloat16)
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    assert gate.run_gate(model).reuses
    for name, parameter in model.hf.named_parameters():
        assert parameter.dtype is torch.bfloat16
        assert torch.equal(parameter, before[name])


def wrong_theta(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.angles, "_inv_freq", model.angles._inv_freq**1.05)


def bf16_frequencies(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    rounded = model.angles._inv_freq.bfloat16().float()
    patch.setattr(model.angles, "_inv_freq", rounded)


def interleaved_layout(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = cos.shape[-1] // 2
        c, s = cos[:, None, :half], sin[:, None, :half]
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        turned = torch.stack((even * c - odd * s, odd * c + even * s), dim=-1)
        return turned.flatten(-2).to(x.dtype)

    def place_kv(k: Any, v: Any, cos: Any, sin: Any, k_pool: Any, v_pool: Any, slots: Any) -> None:
        k_pool[slots], v_pool[slots] = rotate(k, cos, sin), v

    patch.setattr(kernels, "rotate", rotate)
    patch.setattr(kernels, "place_kv", place_kv)


def bottom_right_triangle(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    """CacheBlend's mask: queries taken for the last rows of the sequence (see algorithms, 2.2)."""
    true = kernels.paged_rows_attention

    def attend(
        q: Any, k: Any, v: Any, slots: Any, positions: torch.Tensor, scale: float, **more: Any
    ) -> Any:
        last = int(positions[-1])
        shifted = torch.arange(last - len(positions) + 1, last + 1)
        return true(q, k, v, slots, shifted, scale)

    patch.setattr(kernels, "paged_rows_attention", attend)


def off_by_the_prefix(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    """Placement coordinates that forget the head (LMCache-Ascend#277)."""
    true = DecoderModel.place

    def place(self: DecoderModel, kv: Any, positions: torch.Tensor, pool: Any, slots: Any) -> None:
        true(self, kv, positions - positions[0], pool, slots)

    patch.setattr(DecoderModel, "place", place)


MUTANTS = [
    wrong_theta, bf16_frequencies, interleaved_layout, bottom_right_triangle, off_by_the_prefix,
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("on", ["llama", "qwen3"])
def test_every_mutant_fails(
    build: Callable[..., DecoderModel], on: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(on)
    mutant(model, monkeypatch)
    verdict = gate.run_gate(model)
    assert not verdict.reuses
    assert verdict.problems


def test_a_model_that_ignores_its_context_makes_the_gate_say_it_is_blind(
    build: Callable[..., DecoderModel],
) -> None:
    model = build()
    with torch.no_grad():
        for layer in model.hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    verdict = gate.run_gate(model)
    assert not verdict.reuses
    assert any("blind" in problem for problem in verdict.problems)


def test_nan_logits_never_pass(build: Callable[..., DecoderModel]) -> None:
    model = build()
    with torch.no_grad():
        model.hf.lm_head.weight[5] = float("nan")
    verdict = gate.run_gate(model)
    assert not verdict.serves and not verdict.reuses


def test_verdicts_are_remembered_per_fingerprint_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = gate.Verdict(True, False, 1e-3, {"reference": 0.5}, ("why",))
    assert gate.stored_verdict(b"one", tmp_path) is None
    gate.store_verdict(verdict, b"one", tmp_path)
    assert gate.stored_verdict(b"one", tmp_path) == verdict
    assert gate.stored_verdict(b"two", tmp_path) is None
    (path,) = (tmp_path / "gates").iterdir()
    path.write_text(path.read_text()[:-20])
    assert gate.stored_verdict(b"one", tmp_path) is None
    gate.store_verdict(replace(verdict, reuses=True), b"one", tmp_path)
    monkeypatch.setattr(gate, "GATE_VERSION", gate.GATE_VERSION + 1)
    assert gate.stored_verdict(b"one", tmp_path) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(sliding_window=512), "sliding window"),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1), "sliding"),
        (Gemma3TextConfig(num_hidden_layers=6), "sliding_attention"),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
         "dynamic"),
        (LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                      "partial_rotary_factor": 0.5}), "partial"),
    ],
    ids=["mistral-window", "qwen2-window", "gemma3", "dynamic-ntk", "partial-rotary"],
)  # fmt: skip
def test_unsupported_architectures_are_refused_with_the_reason(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        refuse_unsupported(config)
