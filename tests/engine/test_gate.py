"""The gate passes every supported family, and fails on every way of getting reuse wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from transformers import (
    Dots1Config,
    Dots1ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)
from transformers.models.granite.modeling_granite import GraniteModel
from transformers.models.llama import modeling_llama

import chunkcache_kernels as kernels
from chunkcache.engine import core, gate, reduced, trial
from chunkcache.engine.model import DecoderModel, wrap_model
from chunkcache.engine.pool import KVPool
from chunkcache_kernels import lay_out, portable

SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "pad_token_id": 0,
}  # fmt: skip


def test_every_family_passes(build: Callable[..., DecoderModel], family: str) -> None:
    verdict = gate.run_gate(build(family))
    assert verdict.problems == () and verdict.notes == ()
    assert verdict.serves and verdict.reuses
    assert verdict.figures["turned_queries"] < 1e-5
    assert verdict.figures["repair_all"] <= 1e-4 * max(1.0, verdict.figures["logits_std"])
    assert verdict.figures["moved"] <= 1e-5
    assert verdict.limits["own_reference"] <= 1e-3 >= verdict.limits["reference"]


def test_a_long_context_does_not_cost_reuse(build: Callable[..., DecoderModel]) -> None:
    """Two angles of some 1e5 that are one distance apart: rounded to fp32 they were not."""
    rope = {"rope_type": "default", "rope_theta": 5e5}
    verdict = gate.run_gate(
        build(max_position_embeddings=1 << 17, rope_parameters=rope, head_dim=64)
    )
    assert verdict.problems == () and verdict.reuses
    assert verdict.figures["turned_queries"] < 1e-5


def test_every_family_passes_in_bf16(build: Callable[..., DecoderModel], family: str) -> None:
    verdict = gate.run_gate(build(family, dtype=torch.bfloat16))
    assert verdict.problems == () and verdict.reuses
    assert verdict.limits["own_repair_all"] == 2 * verdict.figures["own_noise"]
    assert verdict.limits["repair_all"] <= 1e-3  # the twin is judged in fp32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_parameter_is_cast_or_copied(
    build: Callable[..., DecoderModel], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = build(dtype=dtype)
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    places = {name: p.data_ptr() for name, p in model.hf.named_parameters()}

    def refuse(*_: Any) -> None:
        pytest.fail("the model was cast")

    for cast in ("float", "half", "bfloat16", "to"):
        monkeypatch.setattr(model.hf, cast, refuse)
    assert gate.run_gate(model).reuses
    for name, parameter in model.hf.named_parameters():
        assert parameter.dtype is dtype and parameter.data_ptr() == places[name]
        assert torch.equal(parameter, before[name])


def test_parts_kept_in_fp32_stay_as_they_are(tokenizer: Any) -> None:
    """transformers keeps the bias of this router in fp32 whatever the model's type is."""
    torch.manual_seed(11)
    config = Dots1Config(
        **{**SIZES, "num_key_value_heads": 6}, moe_intermediate_size=32, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1,
        first_k_dense_replace=1, sliding_window=None, layer_types=["full_attention"] * 3,
    )  # fmt: skip
    network: Any = Dots1ForCausalLM(config).to(torch.bfloat16)
    for layer in network.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias = torch.rand(8) / 10
    model = wrap_model(network, tokenizer, fingerprint=b"dots", name="tiny-dots")
    before = {name: t.clone() for name, t in network.state_dict().items()}
    assert {t.dtype for t in before.values()} == {torch.bfloat16, torch.float32}
    assert gate.run_gate(model).reuses
    for name, tensor in network.state_dict().items():
        assert tensor.dtype is before[name].dtype and torch.equal(tensor, before[name]), name


def wrong_theta(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        model.facts.kinds[0].angles, "frequencies", model.facts.kinds[0].angles.frequencies ** 1.05
    )


def bf16_frequencies(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    rounded = model.facts.kinds[0].angles.frequencies.bfloat16().float()
    patch.setattr(model.facts.kinds[0].angles, "frequencies", rounded)


def interleaved_layout(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = cos.shape[-1] // 2
        c, s = cos[:, None, :half], sin[:, None, :half]
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.stack((even * c - odd * s, odd * c + even * s), dim=-1).flatten(-2)

    patch.setattr(core, "open_team", lambda *_: None)  # the C kernels' layout is their own
    for module in (portable, trial):
        patch.setattr(module, "turned", turned)


class Triangle:
    """Kernels whose rows see what the last rows of the sequence would see."""

    def __init__(self, true: Any, pool: Any, layout: Any, heads: Any, rotary: Any) -> None:
        shifted = [
            replace(s, positions=np.arange(s.positions[-1] - len(s.positions), s.positions[-1]) + 1)
            for s in layout.sequences
        ]
        self.write, self._heads = true(pool, layout, heads, rotary).write, heads
        group = heads.heads // heads.kv_heads
        mask = lay_out(shifted, page_tokens=pool.own.page_tokens, group=group)
        self._attend = true(pool, mask, heads, rotary).attend
        cos, sin = rotary.at(torch.from_numpy(mask.row_positions - layout.row_positions).long())
        self._back = (cos, -sin)  # so that queries are turned as they should be

    def attend(self, layer: int, qkv: torch.Tensor, *, turned: bool = True) -> torch.Tensor:
        qkv = qkv.clone()
        query = portable.split_qkv(qkv, self._heads)[0]
        if turned:
            query.copy_(kernels.turned(query, *self._back))
        return self._attend(layer, qkv, turned=turned)


def bottom_right_triangle(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    """CacheBlend's mask: queries taken for the last rows of the sequence (see algorithms, 2.2)."""
    true = KVPool.bind
    patch.setattr(KVPool, "bind", lambda pool, *of: Triangle(true, pool, *of))


def begins_at(patch: pytest.MonkeyPatch, moved: Callable[[int], int]) -> None:
    true = kernels.Segment.of_chunk

    def of_chunk(*args: Any) -> kernels.Segment:
        segment = true(*args)
        segment.begin = moved(segment.begin)
        return segment

    patch.setattr(kernels.Segment, "of_chunk", of_chunk)


def off_by_the_prefix(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    """Coordinates of a chunk that forget what comes before it (LMCache-Ascend#277)."""
    begins_at(patch, lambda begin: 0)


def wrong_when_far(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    """Turned rightly only near the front; repair of every row hides all that is."""
    begins_at(patch, lambda begin: begin - int(begin > 500))


def replaced_row_seen(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    """A row of a chunk that stays visible beside the one that replaces it."""
    true = kernels.Segment.hide
    patch.setattr(kernels.Segment, "hide", lambda s, gone: true(s, gone[gone != gone.max()]))


MUTANTS = [
    wrong_theta, bf16_frequencies, interleaved_layout, bottom_right_triangle, off_by_the_prefix,
    wrong_when_far, replaced_row_seen,
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


def window_of_600(patch: pytest.MonkeyPatch) -> None:
    true = modeling_llama.eager_attention_forward

    def attend(
        module: Any, q: Any, k: Any, v: Any, mask: torch.Tensor, *args: Any, **kw: Any
    ) -> Any:
        rows = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])[None]
        return true(module, q, k, v, mask.masked_fill(rows >= 600, -1e30), *args, **kw)

    patch.setattr(modeling_llama, "eager_attention_forward", attend)


def slower_beyond_600(patch: pytest.MonkeyPatch) -> None:
    """What longrope does: one set of angles up to a length, another for all of a longer prompt."""
    true = modeling_llama.LlamaRotaryEmbedding.forward

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        factor = 4.0 if position_ids.max() >= 600 else 1.0
        return true(self, x, position_ids / factor)

    patch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", forward)


@pytest.mark.parametrize("mutant", [window_of_600, slower_beyond_600], ids=lambda m: m.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_only_a_long_prompt_shows_is_seen_and_said(
    build: Callable[..., DecoderModel],
    monkeypatch: pytest.MonkeyPatch,
    mutant: Any,
    dtype: torch.dtype,
) -> None:
    model = build(dtype=dtype)
    mutant(monkeypatch)
    verdict = gate.run_gate(model)
    assert not verdict.serves and not verdict.reuses
    assert verdict.figures["own_reference"] <= verdict.limits["own_reference"]
    assert verdict.problems[0].startswith("reference: our full prefill differs from transformers'")
    assert "they agree at 512 tokens and differ at 1024" in verdict.problems[-1]
    assert "nothing in the configuration stands out" in verdict.problems[-1]


def test_the_likely_reason_is_read_from_the_configuration(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = GraniteModel.forward

    def forward(self: Any, *args: Any, **kw: Any) -> Any:
        """A factor that a shallow copy of the model does not show."""
        out = true(self, *args, **kw)
        if len(self.layers) > 1:
            out.last_hidden_state = out.last_hidden_state * 1.5
        return out

    network = GraniteForCausalLM(GraniteConfig(**SIZES, embedding_multiplier=12.0))
    model = wrap_model(network, tokenizer, fingerprint=b"granite", name="tiny-granite")
    monkeypatch.setattr(GraniteModel, "forward", forward)
    verdict = gate.run_gate(model)
    assert not verdict.serves
    assert "they differ at 16 tokens already" in verdict.problems[-1]
    assert "embedding_multiplier=12.0" in verdict.problems[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_twin_the_model_itself_is_tried_and_the_verdict_says_so(
    build: Callable[..., DecoderModel], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Whole(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            raise ValueError("the only size there is")

    model = build(dtype=dtype)
    monkeypatch.setattr(model.hf, "__class__", Whole)
    verdict = gate.run_gate(model)
    assert verdict.reuses and verdict.problems == ()
    (note,) = verdict.notes
    assert "only a prompt of 130 tokens" in note and "the only size there is" in note
    off_by_the_prefix(model, monkeypatch)
    assert not gate.run_gate(model).reuses


def test_attention_that_adds_nothing_makes_the_gate_say_it_is_blind(
    build: Callable[..., DecoderModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = reduced.randomise

    def silent(network: Any, head_dim: int) -> None:
        true(network, head_dim)
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.zero_()

    monkeypatch.setattr(reduced, "randomise", torch.no_grad()(silent))
    verdict = gate.run_gate(build())
    assert not verdict.reuses
    assert any("blind" in problem for problem in verdict.problems)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_logits_never_pass(build: Callable[..., DecoderModel], dtype: torch.dtype) -> None:
    model = build(dtype=dtype)
    with torch.no_grad():
        model.hf.lm_head.weight[5] = float("nan")
    verdict = gate.run_gate(model)
    assert not verdict.serves and not verdict.reuses


VERDICT = gate.Verdict(True, False, {"reference": 0.5}, {"reference": 1e-3}, ("why",), ("short",))


def test_a_verdict_is_remembered_whole_or_not_at_all(tiny: DecoderModel, tmp_path: Path) -> None:
    assert gate.stored_verdict(tiny, tmp_path) is None
    gate.store_verdict(VERDICT, tiny, tmp_path)
    assert gate.stored_verdict(tiny, tmp_path) == VERDICT
    (path,) = (tmp_path / "gates").iterdir()
    path.write_text(path.read_text()[:-20])
    assert gate.stored_verdict(tiny, tmp_path) is None


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tiny: DecoderModel, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with capture_logs() as logged:
        gate.store_verdict(VERDICT, tiny, tmp_path / "cache")
    assert [entry["event"] for entry in logged] == ["verdict_not_remembered"]


@pytest.mark.parametrize("package", ["torch", "triton", "transformers", "chunkcache"])
def test_a_verdict_does_not_hold_for_another_version(
    tiny: DecoderModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    gate.store_verdict(VERDICT, tiny, tmp_path)
    true = gate.version
    monkeypatch.setattr(gate, "version", lambda p: "0.0.0" if p == package else true(p))
    assert gate.stored_verdict(tiny, tmp_path) is None
    gate.store_verdict(VERDICT, tiny, tmp_path)
    assert gate.stored_verdict(tiny, tmp_path) == VERDICT
    monkeypatch.undo()
    assert gate.stored_verdict(tiny, tmp_path) == VERDICT  # the old one was not written over


@pytest.mark.parametrize(
    "other",
    [{"fingerprint": b"two"}, {"dtype": torch.bfloat16}, {"device": torch.device("meta")}],
    ids=str,
)
def test_a_verdict_does_not_hold_for_another_model_type_or_device(
    tiny: DecoderModel, tmp_path: Path, other: dict[str, Any]
) -> None:
    gate.store_verdict(VERDICT, tiny, tmp_path)
    assert gate.stored_verdict(replace(tiny, **other), tmp_path) is None


def test_a_verdict_does_not_hold_for_another_gate_processor_or_source(
    tiny: DecoderModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.store_verdict(VERDICT, tiny, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(gate, "GATE_VERSION", gate.GATE_VERSION + 1)
        assert gate.stored_verdict(tiny, tmp_path) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
        assert gate.stored_verdict(tiny, tmp_path) is None
    for module in (gate, kernels):
        copied = Path(shutil.copytree(Path(module.__file__).parent, tmp_path / module.__name__))
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(copied / Path(module.__file__).name))
            assert gate.stored_verdict(tiny, tmp_path) == VERDICT  # the same code elsewhere
            for more in ("more.py", "more.c", "more.h"):
                (copied / more).write_text("")
                assert gate.stored_verdict(tiny, tmp_path) is None
                (copied / more).unlink()
