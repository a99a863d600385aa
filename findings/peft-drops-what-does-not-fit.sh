#!/usr/bin/env bash
# peft 0.21.2: `PeftModel.from_pretrained` raises where an adapter's tensor has another size than the model's, but not where
# its name fits none. Tensors of layers that the model or the adapter's own configuration does not have are
# dropped without a word; layers that get none keep what they were made with, which is nothing, and a Python warning
# says so. After `merge_and_unload` the model is the base, or in part the adapter, and is served under its name.
# Names differ where an adapter was trained around a wrapper (`language_model.`, `_orig_mod.`) or another base.
# Seen, tiny random Llama: named for `language_model.` the base's logits and one warning; `v_proj` not in target_modules:
# other logits than the adapter's, no warning. What `load_adapter` gives back names both. Fails when that changes.
# Where the warning came from: https://github.com/huggingface/peft/pull/2118
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "peft==0.21.2" "transformers==5.24.0" "torch==2.13.0" numpy
"$work/env/bin/python" - "$work" <<'PY'
import json
import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
)
tokens = torch.arange(3, 23)[None]
made = pathlib.Path(sys.argv[1], "made")


def base():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(tokens).logits


adapted = peft.get_peft_model(base(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
for name, weights in adapted.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weights)
adapted.save_pretrained(made)
wanted, plain = logits(adapted), logits(base())


def opened(name, rename, targets):
    folder = made.with_name(name)
    folder.mkdir()
    tensors = load_file(made / "adapter_model.safetensors")
    save_file({rename(tensor): weights for tensor, weights in tensors.items()}, folder / "adapter_model.safetensors")
    said = json.loads((made / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**said, "target_modules": targets}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base(), folder)
        warned = sum("adapter keys" in str(warning.message) for warning in caught)
        report = model.load_adapter(folder, "default")
    found = logits(model.merge_and_unload())
    return {
        "off the adapter": (found - wanted).abs().max().item(), "off the base": (found - plain).abs().max().item(),
        "warnings": warned, "missing": len(report.missing_keys), "unexpected": len(report.unexpected_keys),
    }


def wrapped(tensor):
    return tensor.replace("model.layers", "model.language_model.layers")


both = ["q_proj", "v_proj"]
found = {
    "as made": opened("same", str, both),
    "wrapped": opened("wrapped", wrapped, both),
    "one target": opened("target", str, ["q_proj"]),
}
print(f"peft {peft.__version__}: {found}")
same, renamed, half = found.values()
assert same["off the adapter"] < 1e-3 < 0.1 < same["off the base"] and same["missing"] == same["unexpected"] == 0
assert renamed["off the base"] < 1e-3 and renamed["warnings"] == 1, "an adapter that fits nothing is refused now"
assert half["off the adapter"] > 0.1 and half["warnings"] == 0, "tensors that nobody reads are told of now"
assert renamed["missing"] == renamed["unexpected"] == 8 and half["unexpected"] == 4
PY
