"""What people name as a model: served, or one sentence that says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from chunkcache.config import Settings
from chunkcache.engine import gate
from chunkcache.engine.loading import load_fingerprint, load_model, load_tokenizer
from chunkcache.engine.model import wrap_model
from chunkcache.errors import ModelNotFound, UnsupportedModel


def settings(folder: Path, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", model={"name": str(folder)})  # type: ignore[arg-type]


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


def test_a_folder_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert "PEFT adapter over 'org/base'" in refusal(tmp_path, tmp_path)


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


def test_a_configuration_that_is_no_json(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(folder, tmp_path)


def test_a_missing_tokenizer(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    assert "the tokenizer" in refusal(folder, tmp_path)
    with pytest.raises((ModelNotFound, UnsupportedModel), match="the tokenizer"):
        load_tokenizer(settings(folder, tmp_path))
    with pytest.raises((ModelNotFound, UnsupportedModel), match="the tokenizer"):
        load_fingerprint(settings(folder, tmp_path))


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes"])
def test_quantised_weights_whose_library_is_not_there(
    folder: Path, tmp_path: Path, method: str
) -> None:
    fields: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": 128}
    if method == "bitsandbytes":
        fields["load_in_4bit"] = True
    change(folder, quantization_config=fields)
    message = refusal(folder, tmp_path)
    assert f"weights quantised by {method!r}" in message


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
