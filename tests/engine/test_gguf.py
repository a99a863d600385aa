"""GGUF files that a user names: a whole one is served, part of one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from structlog.testing import capture_logs
from transformers import Qwen2Config, Qwen2ForCausalLM

from chunkcache import ChunkCache
from chunkcache.config import Settings
from chunkcache.engine import weights
from chunkcache.engine.loading import load_model, load_tokenizer
from chunkcache.engine.reference import transformers_logits
from chunkcache.errors import UnsupportedModel
from chunkcache.protocol import GivenDocument

LAYERS = 2
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def network() -> Any:
    torch.manual_seed(3)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=260, hidden_size=48, intermediate_size=80, num_hidden_layers=LAYERS,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=4096,
            rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    ).eval()  # fmt: skip


def write(file: Path, of: Any, left_out: str = "nothing", rule: str | None = None) -> None:
    """As llama.cpp writes it, in fp32; `rule` says how text is cut before the merges."""
    config, writer = of.config, gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if rule is not None:
        writer.add_tokenizer_pre(rule)
    words = ["t", "1", "t1", "Ġ", "ĠĠ", "2", "22"]
    words += [f"x{n}" for n in range(len(words), config.vocab_size)]
    writer.add_token_list(words)
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["t 1", "Ġ Ġ", "2 2"])
    writer.add_eos_token_id(1)
    for name, tensor in of.state_dict().items():
        stem, _, kind = name.rpartition(".")
        block = ""
        if stem.startswith("model.layers."):
            _, _, number, stem = stem.split(".", 3)
            block = f"blk.{number}."
        if left_out not in name:
            writer.add_tensor(f"{block}{NAMES[stem]}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def settings(file: Path, tmp_path: Path) -> Settings:
    name: Any = {"name": str(file), "dtype": "float32"}
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=name)


def test_a_whole_file_is_the_model(tmp_path: Path) -> None:
    of, file = network(), tmp_path / "whole.gguf"
    write(file, of)
    found = transformers_logits(load_model(settings(file, tmp_path)), range(9))
    with torch.inference_mode():
        wanted = of(torch.arange(9)[None]).logits[0]
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-2)


def test_the_first_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    """transformers makes up at random what is not there."""
    file = tmp_path / "m-00001-of-00002.gguf"
    write(file, network(), left_out="layers.1.mlp")
    with pytest.raises(UnsupportedModel, match="lacks 3 tensors, 'model") as refused:
        load_model(settings(file, tmp_path))
    assert refused.value.message.endswith("must be merged (llama-gguf-split --merge).")
    assert not list((tmp_path / "cache" / "models").iterdir()), "nothing half-made"


@pytest.mark.parametrize(
    ("rule", "tokens", "is_said"),
    [
        ("smollm", ["ĠĠ", "2", "2"], False),
        ("starcoder", ["ĠĠ", "2", "2"], False),
        ("qwen2", ["Ġ", "Ġ", "2", "2"], False),
        ("olmo", ["Ġ", "Ġ", "22"], False),
        ("falcon", ["Ġ", "Ġ", "22"], True),
    ],
)
def test_text_is_cut_by_the_rule_that_the_file_names(
    tmp_path: Path, rule: str, tokens: list[str], is_said: bool
) -> None:
    file = tmp_path / "whole.gguf"
    write(file, network(), rule=rule)
    with capture_logs() as logged:
        tokenizer = load_tokenizer(settings(file, tmp_path))
    assert tokenizer.tokenize("  22") == tokens
    said = [entry["rule"] for entry in logged if entry["event"] == "tokenizer_rule_unknown"]
    assert said == [rule] * is_said


PASSAGES = ["t 22  22 2 t", "22 22  t  2"]


def test_a_home_of_another_rule_is_split_and_computed_again(
    tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier version cut as GPT-2 does: neither its token ids nor their KV are served."""
    file = tmp_path / "whole.gguf"
    write(file, network(), rule="smollm")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "native").symlink_to(native)
    names: Any = {
        "model": {"name": str(file), "dtype": "float32"},
        "retrieval": {"embedder": "hashing:64", "chunk_tokens": 64},
    }

    def opened(home: str) -> ChunkCache:
        return ChunkCache.open(home=tmp_path / home, cache=tmp_path / "cache", **names)

    def asked(cache: ChunkCache) -> Any:
        return cache.ask("2 t 22", max_tokens=3)

    def ids_of(cache: ChunkCache) -> set[tuple[int, ...]]:
        return {chunk.token_ids for chunk in cache.catalog.chunks("public", "default")}

    with monkeypatch.context() as earlier:
        earlier.setattr(weights, "cut_as_gguf_says", lambda *_: None)
        earlier.setattr(weights, "_CONVERSION", 1)
        with opened("home") as cache:
            cache.ingest_texts([GivenDocument(text=text) for text in PASSAGES])
            assert cache.warm().computed == 2
            old_ids, fingerprint = ids_of(cache), cache.runtime.model.fingerprint
            assert asked(cache).report.rung != "full"
    with opened("home") as cache, opened("other home") as fresh:
        fresh.ingest_texts([GivenDocument(text=text) for text in PASSAGES])
        assert cache.runtime.model.fingerprint == fingerprint, "KV of token ids is what it was"
        found, wanted = asked(cache), asked(fresh)
        assert ids_of(cache) == ids_of(fresh) and not ids_of(cache) & old_ids
        assert found.text == wanted.text
        assert found.report.reused_tokens == wanted.report.reused_tokens == 0
