#!/usr/bin/env bash
# transformers 5.24.0: with `rope_type: longrope` (Phi 3 and 4 mini, MiniCPM) `max_position_embeddings` is more than a limit: by
# its ratio to the original length all queries and keys are scaled. `from_pretrained(..., max_position_embeddings=n)`,
# or the number edited in config.json to bound the memory of a cache, gives another model, for short prompts too,
# and keys computed under one do not fit the other. With `attention_factor` written out the number is a limit again;
# yarn, llama3 and linear, whose factor is written out, do not hear it.
# Seen, tiny random Llama of 512 positions, 40 tokens: with 256 the logits are off by more than 0.1 by longrope, by exactly 0
# by the others and by longrope with the factor given. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
"$work/env/bin/python" -W ignore - "$work" <<'PY'
import pathlib
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()
longrope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
llama3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
kinds = {
    "longrope": longrope, "longrope, factor given": {**longrope, "attention_factor": 1.13},
    "yarn": {"rope_type": "yarn", "factor": 4.0}, "llama3": llama3, "linear": {"rope_type": "linear", "factor": 4.0},
}
tokens = torch.arange(3, 43)[None]


@torch.no_grad()
def off(name):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
        rope_parameters={"rope_theta": 10000.0, "original_max_position_embeddings": 128, **kinds[name]},
    )
    folder = pathlib.Path(sys.argv[1], name)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    whole, bounded = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, **more)(tokens).logits
        for more in ({}, {"max_position_embeddings": 256})
    )
    return (whole - bounded).abs().max().item()


found = {name: off(name) for name in kinds}
print(f"transformers {transformers.__version__}, 40 tokens, off with 256 positions instead of 512: {found}")
assert all(found[name] == 0 for name in found if name != "longrope")
assert found["longrope"] > 0.1, "the number of positions is a limit alone now"
PY
