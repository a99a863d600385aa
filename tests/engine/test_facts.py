"""Facts of a layer: read once, true of the model, and refused where nothing follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    SmolLM3Config,
)

from chunkcache.engine.facts import LayerFacts, facts_of, not_followed
from chunkcache.engine.model import refuse_unsupported

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 4, "vocab_size": 64, "head_dim": 8,
    "max_position_embeddings": 512,
}  # fmt: skip
PLAIN = LayerFacts(turned=True, rotary_dim=8, scale=8**-0.5)


def made(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def facts(config: PreTrainedConfig) -> tuple[LayerFacts, ...]:
    return facts_of(made(config), 8)


def test_layers_that_are_all_alike() -> None:
    assert facts(LlamaConfig(**SMALL)) == (PLAIN,) * 4
    assert not_followed(facts(LlamaConfig(**SMALL))) == []


def test_a_layer_without_positions() -> None:
    found = facts(SmolLM3Config(**SMALL, no_rope_layer_interval=4, pad_token_id=None))
    assert [f.turned for f in found] == [True, True, True, False]
    assert [f.rotary_dim for f in found] == [8, 8, 8, 0]
    assert not_followed(found) == []


@pytest.mark.parametrize(("window", "seen"), [(64, 64), (511, 511), (512, None), (4096, None)])
def test_a_window_that_no_prompt_outgrows_is_none(window: int, seen: int | None) -> None:
    config = MistralConfig(**SMALL, sliding_window=window)
    assert [f.window for f in facts(config)] == [seen] * 4
    if seen is None:
        refuse_unsupported(config)
    else:
        assert not_followed(facts(config)) == ["a sliding window (layers 0, 1, 2, 3)"]


def test_windows_caps_and_scales_of_single_layers() -> None:
    found = facts(
        Gemma2Config(**SMALL, sliding_window=64, attn_logit_softcapping=30.0,
                     query_pre_attn_scalar=16)
    )  # fmt: skip
    assert [f.window for f in found] == [64, None, 64, None]
    assert {f.softcap for f in found} == {30.0}
    assert {f.scale for f in found} == {0.25}
    assert not_followed(found) == [
        "a sliding window (layers 0, 2)", "capped scores (layers 0, 1, 2, 3)",
    ]  # fmt: skip


def test_sinks_are_seen() -> None:
    found = facts(GptOssConfig(**SMALL, num_local_experts=2, sliding_window=64))
    assert all(f.sinks for f in found)
    assert "attention sinks (layers 0, 1, 2, 3)" in not_followed(found)


def test_one_layer_that_scales_otherwise_is_named() -> None:
    model = made(LlamaConfig(**{**SMALL, "num_hidden_layers": 9}))
    for layer in model.model.layers[2:]:
        layer.self_attn.scaling = 1.0
    assert not_followed(facts_of(model, 8)) == [
        "scores scaled unlike the first layer's (layers 2, 3, 4, 5 and 3 more)"
    ]


def test_a_model_has_the_facts_of_its_layers(build: Callable[..., Any], family: str) -> None:
    model = build(family)
    assert len(model.facts) == model.geometry.num_layers
    for found, layer in zip(model.facts, model.hf.model.layers, strict=True):
        assert found.scale == layer.self_attn.scaling == model.heads.scale
        assert found.turned == getattr(layer.self_attn, "use_rope", True)
