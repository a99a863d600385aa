"""The small twin keeps what decides attention, and nothing else of the model's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from chunkcache.engine.model import DecoderModel, wrap_model
from chunkcache.engine.reduced import (
    CannotReduce,
    reduced_config,
    reduced_model,
    single_layers,
    twin_layers,
)


def test_layers_are_the_first_in_order_until_each_kind_is_there(
    build: Callable[..., DecoderModel],
) -> None:
    assert twin_layers(build(num_hidden_layers=9)) == [0, 1, 2]
    assert twin_layers(build(num_hidden_layers=2)) == [0, 1]
    model = build("smollm3", num_hidden_layers=9, no_rope_layers=[1, 1, 1, 1, 0, 1, 1, 1, 0])
    assert twin_layers(model) == [0, 1, 2, 3, 4]
    twin: Any = reduced_model(model, twin_layers(model)).hf
    assert [bool(layer.self_attn.use_rope) for layer in twin.model.layers] == [True] * 4 + [False]
    singles: list[Any] = [reduced_model(model, layers).hf for layers in single_layers(model)]
    assert [bool(one.model.layers[0].self_attn.use_rope) for one in singles] == [True, False]


def test_a_wide_model_of_experts_becomes_narrow(tokenizer: Any) -> None:
    config = Qwen3MoeConfig(
        vocab_size=3000, hidden_size=256, intermediate_size=700, moe_intermediate_size=300,
        num_hidden_layers=5, num_attention_heads=16, num_key_value_heads=4, head_dim=32,
        num_experts=16, num_experts_per_tok=8, mlp_only_layers=[0, 1, 2], pad_token_id=2999,
    )  # fmt: skip
    model = wrap_model(Qwen3MoeForCausalLM(config), tokenizer, fingerprint=b"moe", name="moe")
    assert twin_layers(model) == [0, 1, 2, 3]  # the fourth is the first with experts
    twin = reduced_model(model, twin_layers(model))
    kinds = [type(layer.mlp).__name__ for layer in twin.hf.model.layers]  # type: ignore[union-attr]
    assert kinds == ["Qwen3MoeMLP"] * 3 + ["Qwen3MoeSparseMoeBlock"]
    assert (twin.geometry.num_kv_heads, twin.geometry.head_dim) == (2, 32)
    assert twin.hf.config.num_attention_heads == 4
    assert (twin.hf.config.num_experts, twin.hf.config.num_experts_per_tok) == (4, 2)
    assert twin.dtype is torch.float32
    assert sum(p.numel() for p in twin.hf.parameters()) < 1_000_000
    assert model.hf.config.num_experts == 16  # the model's own configuration is not touched


def test_far_lengths_are_brought_within_the_prompt_and_near_ones_kept(
    build: Callable[..., DecoderModel],
) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    model = build(rope_parameters=rope, max_position_embeddings=131072)
    near: Any = reduced_config(model, [0]).rope_parameters
    assert near == {**rope, "original_max_position_embeddings": 1024}
    assert model.hf.config.rope_parameters == rope
    model = build("llama-tied-llama3-rope")
    assert reduced_config(model, [0]).rope_parameters == model.hf.config.rope_parameters


def test_the_same_twin_every_time_and_the_callers_dice_are_not_moved(tiny: DecoderModel) -> None:
    torch.manual_seed(5)
    first = reduced_model(tiny, [0, 1])
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    second = reduced_model(tiny, [0, 1])
    for a, b in zip(first.hf.parameters(), second.hf.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_twin_that_transformers_cannot_run_is_refused_with_the_reason(
    build: Callable[..., DecoderModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any, **__: Any) -> None:
        raise RuntimeError("made for one size")

    model = build()
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(CannotReduce, match=r"LlamaForCausalLM.*made for one size"):
        reduced_model(model, [0])
