"""Facts of a layer: read from what the layer does, followed by the kernels, refused in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GlmConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    HunYuanDenseV1Config,
    Llama4TextConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    NanoChatConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    SmolLM3Config,
)

from chunkcache.engine import gate, listening, row_state
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.facts import LayerFacts, ModelFacts, context_of
from chunkcache.engine.model import refuse_unsupported, use_long_angles, wrap_model
from chunkcache.errors import UnsupportedModel

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 4, "vocab_size": 64, "head_dim": 8,
    "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
PLAIN = LayerFacts(kind=0, turned=True, scale=8**-0.5, value_dim=8)
MLA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16,
    "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2, "vocab_size": 64,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 6, "max_position_embeddings": 4096, "pad_token_id": None,
}  # fmt: skip


EXPERTS: dict[str, Any] = {"num_local_experts": 2, "intermediate_size_mlp": 32}


def wrapped(config: PreTrainedConfig, tokenizer: Any = None) -> DecoderModel:
    """A random model; its norms too, so that one behind the rotation shows."""
    torch.manual_seed(5)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or "sinks" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    tokenizer = tokenizer or SimpleNamespace(eos_token_id=None)
    return wrap_model(network, tokenizer, fingerprint=b"f" * 32, name=config.model_type)


def facts(config: PreTrainedConfig) -> ModelFacts:
    return wrapped(config).facts


def test_layers_that_are_all_alike() -> None:
    found = facts(LlamaConfig(**SMALL))
    assert found.layers == (PLAIN,) * 4 and found.are_alike
    (kind,) = found.kinds
    assert (kind.heads.heads, kind.heads.kv_heads, kind.heads.dim) == (4, 2, 8)
    assert (kind.heads.rotary_dim, kind.heads.window, kind.heads.softcap) == (8, 0, 0.0)


def test_a_layer_without_positions_is_of_the_kind_of_its_neighbours() -> None:
    found = facts(SmolLM3Config(**SMALL, no_rope_layer_interval=4))
    assert [f.turned for f in found.layers] == [True, True, True, False]
    assert len(found.kinds) == 1 and found.are_alike


@pytest.mark.parametrize(("window", "seen"), [(64, 64), (511, 511), (512, None), (4096, None)])
def test_a_window_that_no_prompt_outgrows_is_none(window: int, seen: int | None) -> None:
    found = facts(MistralConfig(**SMALL, sliding_window=window))
    assert [f.window for f in found.layers] == [seen] * 4
    assert found.kinds[0].heads.window == (seen or 0)


def test_a_window_as_long_as_the_model_is_outgrown_where_yarn_reaches_further() -> None:
    yarn = rope("yarn", factor=4.0, original_max_position_embeddings=512)
    config = MistralConfig(**SMALL, sliding_window=512, rope_parameters=yarn)
    assert context_of(config) == 2048
    assert [f.window for f in facts(config).layers] == [512] * 4


def test_windows_caps_and_scales_of_single_layers() -> None:
    found = facts(
        Gemma2Config(**SMALL, sliding_window=64, attn_logit_softcapping=30.0,
                     query_pre_attn_scalar=16)
    )  # fmt: skip
    assert [f.window for f in found.layers] == [64, None, 64, None]
    assert {f.softcap for f in found.layers} == {30.0}
    assert {f.scale for f in found.layers} == {0.25}
    assert [f.kind for f in found.layers] == [0, 1, 0, 1] and not found.are_alike


def test_sinks_are_read() -> None:
    found = facts(
        GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1, sliding_window=64)
    )
    assert all(s is not None and s.shape == (4,) and s.dtype is torch.float32 for s in found.sinks)


def test_layers_with_angles_of_their_own() -> None:
    found = facts(Gemma3TextConfig(**SMALL, sliding_window=64))
    kinds = {f.window: found.kinds[f.kind] for f in found.layers}
    assert found.layers[0].window == 64
    slow, fast = (kind.angles.table(100) for kind in (kinds.get(None, kinds[64]), kinds[64]))
    assert len(kinds) == 1 or not torch.equal(slow.cos, fast.cos)


def test_only_some_layers_turn_and_they_have_the_window() -> None:
    found = facts(Cohere2Config(**SMALL, sliding_window=64, layer_norm_eps=1e-5))
    assert [(f.turned, f.window) for f in found.layers] == [(True, 64)] * 3 + [(False, None)]


@pytest.mark.parametrize(
    ("config", "order", "turned"),
    [
        (CohereConfig(**SMALL), (0, 2, 4, 6, 1, 3, 5, 7), 8),
        (GlmConfig(**SMALL, partial_rotary_factor=0.5), (0, 2, 1, 3, 4, 5, 6, 7), 4),
        (PhiConfig(**{**SMALL, "partial_rotary_factor": 0.5}), None, 4),
        (GPTNeoXConfig(**{**SMALL, "rotary_pct": 0.5, "num_key_value_heads": 4}), None, 4),
        (DeepseekV3Config(**MLA), (8, 10, 9, 11, 0, 1, 2, 3, 4, 5, 6, 7), 4),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_pairs_of_channels_are_found_wherever_they_lie(
    config: PreTrainedConfig, order: tuple[int, ...] | None, turned: int
) -> None:
    found = facts(config)
    if config.model_type == "deepseek_v3":  # the module itself puts neighbours side by side
        order = (8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7)
    assert {f.order for f in found.layers} == {order}
    assert found.kinds[0].heads.rotary_dim == turned


def test_channels_that_are_zero_in_one_layer_are_asked_of_another() -> None:
    """Gemma 3 270m has layers whose norms switch pairs of channels off."""
    config = Gemma3TextConfig(**SMALL, sliding_window=64)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for norm in (network.model.layers[0].self_attn.q_norm,
                     network.model.layers[0].self_attn.k_norm):  # fmt: skip
            norm.weight[[1, 5]] = -1.0  # it multiplies by 1 + weight
    model = wrap_model(
        network, SimpleNamespace(eos_token_id=None), fingerprint=b"z" * 32, name="zero"
    )
    assert {f.order for f in model.facts.layers} == {None}
    assert {kind.heads.rotary_dim for kind in model.facts.kinds} == {8}


def test_a_norm_without_weights_may_stand_behind_the_rotation() -> None:
    """It makes of turned channels what it makes of those that are not; and the turn is another."""
    found = facts(NanoChatConfig(**SMALL))
    assert {f.order for f in found.layers} == {(4, 5, 6, 7, 0, 1, 2, 3)}
    assert found.kinds[0].heads.rotary_dim == 8


def test_smaller_heads_are_filled_up_and_fewer_ones_repeated() -> None:
    config = Gemma4TextConfig(
        **SMALL, hidden_size_per_layer_input=0, global_head_dim=16, num_global_key_value_heads=1,
        attention_k_eq_v=True, sliding_window=64,
    )  # fmt: skip
    model = wrapped(config)
    assert (model.geometry.num_kv_heads, model.geometry.head_dim) == (2, 16)
    assert [f.value_dim for f in model.facts.layers] == [8, 8, 8, 16]
    kinds = [model.facts.kinds[f.kind].heads for f in model.facts.layers]
    assert [(h.kv_heads, h.dim, h.rotary_dim) for h in kinds] == [(2, 16, 8)] * 3 + [(2, 16, 16)]


def test_blocks_are_facts_of_the_layers_that_have_them() -> None:
    found = facts(Llama4TextConfig(**SMALL, **EXPERTS, attention_chunk_size=64))
    assert [(f.turned, f.block) for f in found.layers] == [(True, 64)] * 3 + [(False, None)]
    assert not found.are_alike
    found = facts(Llama4TextConfig(**SMALL, **EXPERTS, attention_chunk_size=512))
    assert {f.block for f in found.layers} == {None}, "no prompt outgrows it"


def test_a_model_has_the_facts_of_its_layers(build: Callable[..., Any], family: str) -> None:
    model = build(family)
    assert len(model.facts.layers) == model.geometry.num_layers
    for found, layer in zip(model.facts.layers, model.hf.model.layers, strict=True):
        assert found.scale == layer.self_attn.scaling
        assert found.turned == getattr(layer.self_attn, "use_rope", True)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (HunYuanDenseV1Config(**SMALL), "change after they are turned"),
        (LlamaConfig(**SMALL, layer_types=["full_attention", "conv"] * 2), "layers of type conv"),
    ],
    ids=["norm behind the rotation", "conv layers"],
)
def test_what_is_not_followed_is_refused_in_words(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        wrapped(config)


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4, **more}


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [
        (rope("default"), 512),
        (rope("dynamic", factor=4.0), 512),
        (rope("yarn", factor=4.0, original_max_position_embeddings=512), 2048),
        (rope("longrope", factor=2.0, original_max_position_embeddings=256,
              short_factor=[1.0] * 4, long_factor=[2.0] * 4), 256),
    ],
    ids=lambda p: p.get("rope_type", "by layer") if isinstance(p, dict) else str(p),
)  # fmt: skip
def test_how_long_a_prompt_may_be(parameters: dict[str, Any], tokens: int) -> None:
    config = Qwen2Config(**SMALL, rope_parameters=parameters)
    refuse_unsupported(config)
    assert context_of(config) == tokens


def test_longropes_long_angles_reach_the_whole_length_for_all_prompts() -> None:
    parameters = rope("longrope", factor=2.0, original_max_position_embeddings=256,
                      short_factor=[1.0] * 4, long_factor=[2.0] * 4)  # fmt: skip
    config = Qwen2Config(**SMALL, rope_parameters=parameters)
    short = facts(config).kinds[0].angles.table(8)
    use_long_angles(config)
    assert context_of(config) == 512
    long = facts(config).kinds[0].angles.table(8)
    assert not torch.equal(short.cos, long.cos)
    with pytest.raises(UnsupportedModel, match=r"model\.longrope: got 'long', but 'qwen2'"):
        use_long_angles(Qwen2Config(**SMALL))


def test_the_shortest_reach_of_any_layer_is_the_models() -> None:
    by_layer = {"sliding_attention": rope("default"), "full_attention": rope(
        "longrope", factor=2.0, original_max_position_embeddings=256, short_factor=[1.0] * 4,
        long_factor=[2.0] * 4)}  # fmt: skip
    assert context_of(SimpleNamespace(max_position_embeddings=512, rope_parameters=by_layer)) == 256


LONG = {**SMALL, "num_hidden_layers": 2, "max_position_embeddings": 8192}
YARN = rope("yarn", factor=2.0, original_max_position_embeddings=1024, llama_4_scaling_beta=0.1)
SERVED = {
    "a window": MistralConfig(**LONG, sliding_window=600),
    "soft-caps": Gemma2Config(**LONG, sliding_window=600, final_logit_softcapping=5.0,
                              attn_logit_softcapping=3.0),
    "two rotaries": Gemma3TextConfig(**LONG, sliding_window=600, layer_types=[
        "sliding_attention", "full_attention"]),
    "sinks": GptOssConfig(**LONG, num_local_experts=2, num_experts_per_tok=1, sliding_window=600),
    "neighbours": CohereConfig(**LONG, logit_scale=0.5),
    "part of a head": GlmConfig(**LONG, partial_rotary_factor=0.5),
    "another trunk": GPTNeoXConfig(**{**LONG, "num_key_value_heads": 4}, rotary_pct=0.5),
    "factors": GraniteConfig(**LONG, embedding_multiplier=12.0, logits_scaling=3.0,
                             residual_multiplier=0.5, attention_multiplier=0.2),
    "a scale by position": Ministral3Config(**LONG, sliding_window=None, rope_parameters=YARN),
    "latent attention": DeepseekV3Config(**MLA),
    "blocks": Llama4TextConfig(**LONG, **EXPERTS, attention_chunk_size=600, floor_scale=256,
                               no_rope_layers=[1, 0]),
    "a norm behind": NanoChatConfig(**LONG),
    "heads of two shapes": Gemma4TextConfig(
        **{**LONG, "num_key_value_heads": 4}, hidden_size_per_layer_input=0, global_head_dim=16,
        num_global_key_value_heads=2, attention_k_eq_v=True, sliding_window=600),
    "keys of other layers": Gemma4TextConfig(
        **{**LONG, "num_hidden_layers": 4}, hidden_size_per_layer_input=8, global_head_dim=16,
        vocab_size_per_layer_input=64, num_kv_shared_layers=2, sliding_window=600,
        layer_types=["sliding_attention", "full_attention"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_families_pass_the_gate(name: str, tokenizer: Any) -> None:
    verdict = gate.run_gate(wrapped(SERVED[name], tokenizer))
    assert verdict.reuses, verdict.problems
    assert not verdict.notes


def without(model: DecoderModel, **switched: Any) -> None:
    """A fact of all layers switched off where the kernels take it."""
    kernels_take = ("window", "softcap", "scale", "block")
    changed = {k: v for k, v in switched.items() if k in kernels_take}
    kinds = tuple(replace(kind, heads=replace(kind.heads, **changed)) for kind in model.facts.kinds)
    rest = {k: v for k, v in switched.items() if k not in changed}
    model.facts = replace(model.facts, kinds=kinds, **rest)


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("a window", {"window": 0}), ("soft-caps", {"softcap": 0.0}),
        ("sinks", {"sinks": (None, None)}), ("factors", {"scale": 1.0}), ("blocks", {"block": 0}),
    ],
    ids=["window", "softcap", "sinks", "scale", "block"],
)  # fmt: skip
def test_a_fact_that_is_not_followed_does_not_pass(
    name: str, fact: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gate.reduced_model

    def reduced(model: DecoderModel, layers: Any) -> DecoderModel:
        twin = made(model, layers)
        sinks = (None,) * len(layers)
        without(twin, **({"sinks": sinks} if "sinks" in fact else fact))
        return twin

    monkeypatch.setattr(gate, "reduced_model", reduced)
    verdict = gate.run_gate(wrapped(SERVED[name], tokenizer))
    assert not verdict.serves and not verdict.reuses


@pytest.mark.parametrize("name", ["two rotaries", "blocks"])
def test_angles_that_are_not_the_layers_own_do_not_pass(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another layer, or any where a layer has no positions."""
    made = gate.reduced_model

    def reduced(model: DecoderModel, layers: Any) -> DecoderModel:
        twin = made(model, layers)
        of, first = twin.facts, twin.facts.kinds[0]
        turns = [replace(kind.heads, rotary_dim=first.heads.rotary_dim) for kind in of.kinds]
        kinds = tuple(replace(first, heads=heads) for heads in turns)
        turned = tuple(replace(layer, turned=True) for layer in of.layers)
        twin.facts = replace(of, kinds=kinds, layers=turned)
        return twin

    monkeypatch.setattr(gate, "reduced_model", reduced)
    verdict = gate.run_gate(wrapped(SERVED[name], tokenizer))
    assert not verdict.serves and not verdict.reuses
    assert verdict.figures["reference"] > 0.01, "it ran, and differs"


def test_a_scale_by_place_that_is_not_followed_does_not_pass(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 4 asks a cache where its rows stand, and takes them to be at the start without one."""
    monkeypatch.setattr(listening._Standing, "get_seq_length", lambda *_: 0)
    verdict = gate.run_gate(wrapped(SERVED["blocks"], tokenizer))
    assert not verdict.serves


@pytest.mark.parametrize("lost", ["own", "shared"])
def test_what_layers_are_given_beside_hidden_states_is_seen(
    lost: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switched off: each layer's own input, or keys that an earlier layer made."""
    leaving = row_state.RowState.leaving

    def without_it(state: Any, hidden: torch.Tensor, beside: Any) -> torch.Tensor:
        nothing = {kind: (k * 0, v * 0) for kind, (k, v) in beside.shared.items()}
        changed = {"own": beside.own * 0} if lost == "own" else {"shared": nothing}
        return leaving(state, hidden, replace(beside, **changed))

    monkeypatch.setattr(row_state.RowState, "leaving", without_it)
    verdict = gate.run_gate(wrapped(SERVED["keys of other layers"], tokenizer))
    assert not verdict.serves
    assert verdict.figures["reference"] > 0.01, "it ran, and differs"


def test_fewer_heads_repeated_in_another_order_do_not_pass(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrapped(SERVED["heads of two shapes"], tokenizer)
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda t, n, _: t.repeat(n, 1, 1))
    assert not gate.run_gate(model).serves


def test_long_angles_are_right_beyond_the_original_length_and_short_ones_are_not(
    tokenizer: Any,
) -> None:
    parameters = rope("longrope", factor=2.0, original_max_position_embeddings=1024,
                      short_factor=[1.0] * 4, long_factor=[1.5, 2.0, 3.0, 4.0])  # fmt: skip
    config = Qwen2Config(**LONG, rope_parameters=parameters)
    short = wrapped(config, tokenizer)
    assert short.context_tokens == 1024
    short.context_tokens = 8192  # as if they had no end
    assert not gate.run_gate(short).serves
    use_long_angles(config)
    verdict = gate.run_gate(wrapped(config, tokenizer))
    assert verdict.reuses, verdict.problems
