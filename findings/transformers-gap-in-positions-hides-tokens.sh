#!/usr/bin/env bash
# transformers 5.24.0: a forward pass that is given `position_ids` with a gap, no mask and no cache takes the tokens before
# and behind the gap for two texts that were packed into one row: those behind do not see those before. A mask of
# ones, which masks nothing, brings them back, and so does `use_cache=True`, whose answer should be the same. So a
# reference for passages that are placed apart, made in the obvious way, is wrong without a word.
# Seen, tiny random Llama, positions 0-9 and 50-59: logits differ by more than 1 from row 10 on between
# use_cache=False and True; with a mask of ones both are equal. Fails when that changes.
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
    num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
)
model = transformers.LlamaForCausalLM(config).eval()
tokens = torch.randint(64, (1, 20))
apart = torch.tensor([[*range(10), *range(50, 60)]])


@torch.no_grad()
def logits(**more):
    return model(tokens, position_ids=apart, **more).logits[0]


ones = torch.ones_like(tokens)
cached = logits(use_cache=True)
off = (logits(use_cache=False) - cached).abs().amax(-1)
masked = (logits(use_cache=False, attention_mask=ones) - cached).abs().max()
print(f"transformers {transformers.__version__}: without a cache, off by {off[:10].max():.2g} before the gap, by "
      f"{off[10:].min():.2g} to {off[10:].max():.2g} behind it; with a mask of ones by {masked:.2g}")
assert off[:10].max() < 1e-3 and masked < 1e-3
assert off[10:].min() > 1, "tokens behind a gap see those before it now"
PY
