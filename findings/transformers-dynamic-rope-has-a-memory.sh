#!/usr/bin/env bash
# transformers 5.24.0: with `rope_type: dynamic` what a model answers depends on what it was asked before. A text beyond
# `max_position_embeddings` stretches the angles, and they stay so for the texts after it that are no longer than it,
# until one within the original length comes by. So the same prompt has three answers, keys in a cache
# fit only the angles of their time, and what one caller sends changes another's logits.
# Seen, tiny random Llama of 128 positions: 150 tokens before and after 400 differ by more than 1; after 100 tokens
# they are as at first. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
"$work/env/bin/python" - <<'PY'
import torch
import transformers

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
)
model = transformers.LlamaForCausalLM(config).eval()
tokens = torch.randint(64, (1, 400))


@torch.no_grad()
def logits(length):
    return model(tokens[:, :length]).logits[0]


first, again = logits(150), logits(150)
logits(400)
after_long = logits(150)
logits(100)
after_short = logits(150)
off = {name: (found - first).abs().max().item()
       for name, found in (("again", again), ("after 400", after_long), ("after 100", after_short))}
print(f"transformers {transformers.__version__}, 150 tokens against the first time: {off}")
assert off["again"] == off["after 100"] == 0
assert off["after 400"] > 1, "a long text leaves nothing behind now"
PY
