"""What the gate compares with: transformers' own answer, and how far rounded angles move it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GptOssConfig, Llama4TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding
from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

from chunkcache.engine import gate
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.model import wrap_model
from chunkcache.engine.reference import ExactAngles, transformers_logits, type_noise

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 320, "head_dim": 64,
    "max_position_embeddings": 131072, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096, "rope_theta": 150000.0,
}  # fmt: skip
SHARP = GptOssConfig(
    **SIZES, num_local_experts=2, num_experts_per_tok=2, sliding_window=600, rope_parameters=YARN,
    layer_types=["full_attention"] * 3,
)  # fmt: skip


def wrapped(config: Any, tokenizer: Any, dtype: torch.dtype = torch.float32) -> DecoderModel:
    torch.manual_seed(5)
    network: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    return wrap_model(network, tokenizer, fingerprint=b"sharp", name=config.model_type)


@pytest.mark.parametrize(
    ("rotary", "kind"),
    [
        (GptOssRotaryEmbedding(SHARP), ()),
        (Gemma3RotaryEmbedding(Gemma3TextConfig(**SIZES)), ("sliding_attention",)),
        (Llama4TextRotaryEmbedding(Llama4TextConfig(**SIZES)), ()),
    ],
    ids=["halves", "by layer", "complex"],
)
def test_angles_that_are_not_rounded_are_those_of_numbers_twice_as_long(
    rotary: Any, kind: tuple[str, ...]
) -> None:
    where = torch.arange(3, 2500)[None]
    state = torch.zeros(1, 1)
    own, found = rotary(state, where, *kind), ExactAngles(rotary)(state, where, *kind)
    frequencies = getattr(rotary, f"{kind[0]}_inv_freq" if kind else "inv_freq").double()
    angles = where[0].double()[:, None] * frequencies
    if torch.is_tensor(own):
        assert torch.is_tensor(found) and found.dtype is own.dtype
        (own, found), wanted = ((own.real,), (found.real,)), (angles.cos(),)
    else:
        scale = rotary.attention_scaling if not kind else 1.0
        wanted = (angles.cos() * scale, angles.sin() * scale)
    for ours, theirs, right in zip(found, own, wanted, strict=True):
        width = right.shape[-1]
        assert ours.shape == theirs.shape and ours.dtype is torch.float32
        assert (ours[0, :, :width] - right).abs().max() < 1e-6
        assert (theirs[0, :, :width] - right).abs().max() > 2e-5


def test_sharp_attention_is_judged_by_angles_that_are_not_rounded(tokenizer: Any) -> None:
    """YaRN's factor of 32: what transformers' rounded angles do is no fault of ours."""
    verdict = gate.run_gate(wrapped(SHARP, tokenizer))
    assert verdict.reuses, verdict.problems
    figures, limits = verdict.figures, verdict.limits
    assert figures["reference"] > 1e-3 >= limits["unrounded"] >= figures["unrounded"]
    assert (
        figures["reference"]
        <= limits["reference"]
        == (limits["unrounded"] + figures["angle_noise"])
    )
    assert limits["repair_all"] == limits["unrounded"], "only what rounding explains"


def test_what_rounding_does_not_explain_does_not_pass(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frequencies that are off by two millionths."""
    made = gate.reduced_model

    def reduced(model: DecoderModel, layers: Any) -> DecoderModel:
        twin = made(model, layers)
        angles = twin.facts.kinds[0].angles
        angles.frequencies = angles.frequencies * (1 + 2e-6)
        return twin

    monkeypatch.setattr(gate, "reduced_model", reduced)
    verdict = gate.run_gate(wrapped(SHARP, tokenizer))
    assert not verdict.serves and not verdict.reuses
    assert verdict.figures["unrounded"] > verdict.limits["unrounded"]


def test_an_attention_function_that_knows_no_sinks_says_nothing_of_noise(tokenizer: Any) -> None:
    model = wrapped(SHARP, tokenizer)
    for layer in model.hf.model.layers:
        torch.nn.init.constant_(layer.self_attn.sinks, 3.0)
    tokens = list(range(60))
    reference = transformers_logits(model, tokens)
    assert type_noise(model, tokens, reference) < 1e-4
