"""What people name as a model: served, or one sentence that says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from chunkcache.config import Settings
from chunkcache.engine import gate, loading
from chunkcache.engine.loading import (
    choose_device,
    choose_dtype,
    load_fingerprint,
    load_model,
    load_tokenizer,
)
from chunkcache.engine.model import wrap_model
from chunkcache.engine.reference import transformers_logits
from chunkcache.errors import ConfigError, ModelNotFound, UnsupportedModel
from chunkcache_kernels.sending import runs_triton


def settings(folder: Path, tmp_path: Path, cache: Path | None = None) -> Settings:
    """With `cache` one where kernels are that were compiled before."""
    name: Any = {"name": str(folder)}
    return Settings(home=tmp_path / "home", cache=cache or tmp_path / "cache", model=name)


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refusal(folder: Path, tmp_path: Path) -> str:
    """The one sentence, the same from the model and, if it comes so far, from its fingerprint."""
    with pytest.raises((ModelNotFound, UnsupportedModel)) as refused:
        load_model(settings(folder, tmp_path))
    message = refused.value.message
    assert message.startswith("model.name: ") and "\n" not in message and "Traceback" not in message
    return message


def test_a_folder_without_a_configuration_names_the_gguf_in_it(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path, tmp_path)
    (tmp_path / "some.Q4_K_M.gguf").write_bytes(b"GGUF")
    assert "give the file 'some.Q4_K_M.gguf' in it" in refusal(tmp_path, tmp_path)


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"GGUF but not really" * 9)
    assert "'weights.gguf'" in refusal(file, tmp_path)
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"")
    assert "is a file, and no .gguf" in refusal(other, tmp_path)


def test_code_in_the_folder_is_not_run_and_nobody_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    change(folder, model_type="mine", auto_map={"AutoConfig": "mine.MineConfig"})
    (folder / "mine.py").write_text("raise SystemExit('the code was run')")
    assert "brings its own code (model_type 'mine')" in refusal(folder, tmp_path)


def test_a_type_nobody_knows(folder: Path, tmp_path: Path) -> None:
    change(folder, model_type="llama99")
    assert "llama99" in refusal(folder, tmp_path)


def test_what_is_not_followed_is_said_before_weights_are_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    change(folder, altup_num_inputs=4)
    assert "has several hidden states of each token (AltUp)" in refusal(folder, tmp_path)


def test_a_configuration_that_is_no_json(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(folder, tmp_path)


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_text_is_cut_as_tokenizer_json_says_whatever_class_is_named(
    folder: Path, tmp_path: Path, named: str
) -> None:
    """transformers takes words and merges alone from it for some names."""
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    thirds = pre_tokenizers.Split(Regex("[0-9]{1,3}|fox"), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([thirds, plain])
    own.normalizer = normalizers.Lowercase()
    own.save(str(folder / "tokenizer.json"))
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": named}))
    tokenizer: Any = load_tokenizer(settings(folder, tmp_path))
    text = "The quick\n  brown fox jumps, 1234 the<|im_end|>Lazy dog"
    assert tokenizer(text)["input_ids"] == own.encode(text).ids
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a foxfox")
    assert [piece for piece, _ in pieces] == ["aĠ", "fox", "fox"]


def test_a_missing_tokenizer(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    assert "is missing. Hint: put tokenizer.json and" in refusal(folder, tmp_path)
    with pytest.raises((ModelNotFound, UnsupportedModel), match="the tokenizer"):
        load_tokenizer(settings(folder, tmp_path))
    with pytest.raises((ModelNotFound, UnsupportedModel), match="the tokenizer"):
        load_fingerprint(settings(folder, tmp_path))


@pytest.mark.parametrize(
    ("method", "package"),
    [
        ("gptq", "optimum gptqmodel"), ("awq", "gptqmodel"), ("bitsandbytes", "bitsandbytes"),
        ("aqlm", "aqlm[cpu]"), ("quanto", "optimum-quanto"), ("hqq", "hqq"), ("eetq", "kernels"),
        ("quark", "amd-quark"), ("torchao", "torchao"), ("vptq", "vptq"),
        ("auto-round", "auto-round"), ("sinq", "sinq"), ("fouroversix", "fouroversix"),
    ],
)  # fmt: skip
def test_quantised_weights_whose_library_is_not_there(
    folder: Path, tmp_path: Path, method: str, package: str
) -> None:
    fields: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": 128}
    if method == "bitsandbytes":
        fields["load_in_4bit"] = True
    change(folder, quantization_config=fields)
    message = refusal(folder, tmp_path)
    assert f"weights quantised by {method!r}" in message
    assert message.endswith(f"Hint: pip install {package}.")


def test_every_method_of_transformers_has_a_package_or_needs_none() -> None:
    """A method of a later release is seen here; those that need no package were loaded as plain."""
    methods = {
        m.removesuffix("_4bit").removesuffix("_8bit") for m in AUTO_QUANTIZATION_CONFIG_MAPPING
    }
    alone = {"gguf", "bitnet", "fp8", "mxfp8", "gemma"}
    assert methods - alone == set(loading._QUANTISED_BY)


def test_weights_in_8_bits_are_served_where_their_library_is(
    folder: Path, tmp_path: Path, tiny_verdicts: Path
) -> None:
    """As `compressed-tensors` packs them; transformers unpacks them on a CPU."""
    tiny = Path(shutil.copytree(folder, tmp_path / "rounded"))
    plain = load_file(folder / "model.safetensors")
    packed: dict[str, torch.Tensor] = {}
    rounded: dict[str, torch.Tensor] = {}
    for name, weight in plain.items():
        if not name.endswith("_proj.weight"):
            packed[name] = rounded[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 127
        numbers = (weight / scale).round().to(torch.int8)
        rounded[name] = numbers * scale
        packed[f"{name}_packed"] = pack_to_int32(numbers, 8)
        packed[f"{name}_scale"] = scale
        packed[f"{name}_shape"] = torch.tensor(weight.shape)
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    change(folder, quantization_config={
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    })  # fmt: skip
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(settings(folder, tmp_path, tiny_verdicts))
    found = transformers_logits(model, range(9))
    verdict = gate.run_gate(model)
    assert verdict.reuses, verdict.problems
    save_file(rounded, tiny / "model.safetensors", metadata={"format": "pt"})
    network = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(
            found, network(torch.arange(9)[None]).logits[0], atol=1e-3, rtol=1e-3
        )


def test_weights_that_are_not_all_there(folder: Path, tmp_path: Path) -> None:
    """transformers makes up what is missing, at random, and goes on."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lack 1 tensors, 'model.layers.1.mlp.up_proj.weight'" in refusal(folder, tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "by 'modelopt', which transformers"),
        ({"group_size": 64, "bits": 4}, "does not name (no quant_method; MLX"),
    ],
    ids=["unknown", "not named"],
)
def test_quantised_in_a_way_that_transformers_would_read_as_plain(
    folder: Path, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    change(folder, quantization_config=fields)
    assert said in refusal(folder, tmp_path)


def test_scales_that_nothing_reads(folder: Path, tmp_path: Path) -> None:
    """Of fp8 weights whose configuration says nothing: their numbers are others without these."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight_scale"] = torch.tensor(0.1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "nothing reads 'model.layers.0.mlp.up_proj.weight_scale'" in refusal(folder, tmp_path)


def test_weights_of_other_sizes(folder: Path, tmp_path: Path) -> None:
    change(folder, intermediate_size=64)
    message = refusal(folder, tmp_path)
    assert "'model.layers.0.mlp.down_proj.weight' is [48, 80], must be [48, 64]" in message


def test_pointers_of_git_lfs(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refusal(folder, tmp_path).endswith("Hint: git lfs pull in the folder.")


def test_an_earlier_model_beside_its_shards(folder: Path, tmp_path: Path) -> None:
    """transformers leaves it there and reads it instead of them; others read the shards."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.save_pretrained(folder, max_shard_size="20KB")
    assert "model.safetensors and shards, model-00001-of-" in refusal(folder, tmp_path)
    (folder / "model.safetensors").unlink()
    load_model(settings(folder, tmp_path))
    network.save_pretrained(folder)  # an index is left, its shards are not
    assert (folder / "model.safetensors.index.json").is_file()
    load_model(settings(folder, tmp_path))


def test_a_rotary_that_transformers_does_not_know(folder: Path, tmp_path: Path) -> None:
    change(folder, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})
    assert "what reads it does not know 'spiral'" in refusal(folder, tmp_path)


def test_weights_that_are_cut_short(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])
    assert "the weights" in refusal(folder, tmp_path)


def test_what_reads_in_a_model_that_sees_is_served(tokenizer: Any) -> None:
    text = {
        "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 320, "head_dim": 16,
        "max_position_embeddings": 4096, "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(4)
    network = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    model = wrap_model(network, tokenizer, fingerprint=b"sees", name="sees")
    assert model.num_tokens == 320 and model.context_tokens == 4096
    verdict = gate.run_gate(model)
    assert verdict.reuses, verdict.problems


def test_a_model_that_sees_is_loaded_whole_and_its_reader_is_tried(
    tokenizer: Any, tmp_path: Path, tiny_verdicts: Path
) -> None:
    """Of Qwen2.5-VL no model of the text part alone has a name; its three sections are one here."""
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {
        "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 320,
        "max_position_embeddings": 4096, "rope_parameters": sections,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
              "out_hidden_size": 32, "patch_size": 14}  # fmt: skip
    torch.manual_seed(4)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "sees")
    tokenizer.save_pretrained(tmp_path / "sees")
    model = load_model(settings(tmp_path / "sees", tmp_path, tiny_verdicts))
    verdict = gate.run_gate(model)
    assert verdict.reuses and not verdict.notes, (verdict.problems, verdict.notes)
    assert model.fingerprint == load_fingerprint(settings(tmp_path / "sees", tmp_path))


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by what the first weights that go there come to."""
    for wanted in ("gpu", "cuda:x", "cuda 1", "mps", "xpu:0", "meta", "cpu:3"):
        with pytest.raises(ConfigError, match=rf"model\.device: got '{wanted}'.* Hint: auto, cpu"):
            choose_device(wanted)
    too_old = "The NVIDIA driver on your system is too old (found version 11000)."

    def init() -> None:
        raise RuntimeError(too_old)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(ConfigError, match=r"got 'cuda': The NVIDIA driver .* too old"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1").index == 1 and choose_device("auto").type == "cuda"
    with pytest.raises(ConfigError, match=r"got 'cuda:2', must be below cuda:2"):
        choose_device("cuda:2")


def test_an_old_gpu_computes_in_fp32_and_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton makes nothing for it, and torch takes its products in bf16 apart."""
    device = torch.device("cuda")
    for capability, dtype in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, of=capability: of)
        assert choose_dtype("auto", device) is dtype
        assert choose_dtype("bfloat16", device) is torch.bfloat16
        assert runs_triton(device) is (dtype is torch.bfloat16)
    assert not runs_triton(torch.device("cpu"))


def test_a_model_that_is_too_large_for_a_device_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loading, "choose_device", lambda _: torch.device("meta"))
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ConfigError, match=r"model\.device: got 'meta', which has no room"):
        load_model(settings(folder, tmp_path))
