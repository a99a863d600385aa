"""Adapters of PEFT over a base model: merged whole, or refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chunkcache.config import Settings
from chunkcache.engine import sources
from chunkcache.engine.loading import load_fingerprint, load_model
from chunkcache.engine.reference import transformers_logits
from chunkcache.errors import ModelNotFound, UnsupportedModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, which adapters name as their base."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def settings(folder: Path) -> Settings:
    beside: Any = {"home": folder.parent / "home", "cache": folder.parent / "cache"}
    return Settings(**beside, model={"name": str(folder)})


def refusal(folder: Path) -> str:
    with pytest.raises((ModelNotFound, UnsupportedModel)) as refused:
        load_model(settings(folder))
    message = refused.value.message
    assert message.startswith("model.name: ") and "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("base", "has_peft", "said"),
    [
        (
            "org/base",
            False,
            "adapter over 'org/base', and peft is not installed. Hint: pip install ",
        ),
        ("/no/base", True, "adapter over '/no/base', which is not there"),
        (None, True, "adapter over 'a base model' that it does not name"),
    ],
    ids=["no peft", "no base", "no name"],
)
def test_an_adapter_that_cannot_be_merged(
    base: str | None, has_peft: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda _: has_peft or None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    assert said in refusal(tmp_path)


def test_an_adapter_is_merged_into_its_base(folder: Path, tmp_path: Path) -> None:
    """It answers as PEFT's own model, and its KV is its own."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(8)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    network = peft.get_peft_model(base, lora).eval()
    network.peft_config["default"].base_model_name_or_path = str(folder)
    network.save_pretrained(tmp_path / "adapter")
    adapted = settings(tmp_path / "adapter")
    model, ids = load_model(adapted), torch.arange(9)[None]
    with torch.inference_mode():
        wanted = network(ids).logits[0]
        network.disable_adapter_layers()
        plain = network(ids).logits[0]
    found = transformers_logits(model, ids[0].tolist())
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - plain).abs().max() > 0.1
    marks = [load_fingerprint(adapted), load_fingerprint(settings(folder))]
    changed = tmp_path / "adapter" / "adapter_config.json"
    changed.write_text(json.dumps({**json.loads(changed.read_text()), "lora_alpha": 99}))
    assert model.fingerprint == marks[0]
    assert len({*marks, load_fingerprint(adapted)}) == 3


def test_an_adapter_without_weights(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    fields = {"base_model_name_or_path": str(folder), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    assert "its weights are missing. Hint: adapter_model" in refusal(adapter)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize(
    ("renamed", "targets", "said"),
    [
        ("model.language_model.", ["q_proj", "v_proj"], "has no place for 8 of its tensors"),
        ("model.", ["q_proj"], "has no place for 4 of its tensors"),
        ("model.", ["o_proj", "q_proj", "v_proj"], "lacks 4 tensors"),
    ],
    ids=["wrapped", "fewer targets", "more targets"],
)
def test_an_adapter_that_does_not_fit(
    folder: Path, tmp_path: Path, renamed: str, targets: list[str], said: str
) -> None:
    """peft leaves such tensors out, at most with a warning, and the base answers in its place."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    network.peft_config["default"].base_model_name_or_path = str(folder)
    adapter = tmp_path / "adapter"
    network.save_pretrained(adapter)
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    weights = {k.replace("model.model.", f"model.{renamed}"): w for k, w in load_file(file).items()}
    save_file(weights, file)
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": targets}))
    assert said in refusal(adapter)
