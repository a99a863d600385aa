#!/usr/bin/env bash
# transformers 5.24.0: a boolean attention mask `[batch, 1, rows, keys]` says with `attn_implementation="sdpa"` who sees
# whom, as in torch. With "eager" the same mask is added to the scores as numbers, so that it hides nothing, the
# future neither, and no error says so. A mask of 0 and 1 in the model's dtype is added by both. What both
# understand is zero and a large negative number.
# Seen, tiny random Llama: sdpa with True/False equals both with the additive mask; eager with True/False does not, and
# a change of the last token changes its first row. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
"$work/env/bin/python" - <<'PY'
import torch
import transformers

config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
)
tokens = torch.arange(12)[None]
seen = torch.ones(12, 12, dtype=torch.bool).tril()
seen[6:, :3] = False  # the second half does not see the first three tokens
added = torch.zeros(12, 12).masked_fill(~seen, torch.finfo(torch.float32).min)


@torch.no_grad()
def logits(attention, mask, tokens=tokens):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()
    return model(tokens, attention_mask=mask[None, None]).logits[0]


right = logits("sdpa", added)
off = {(attention, name): (logits(attention, mask) - right).abs().max().item()
       for attention in ("sdpa", "eager") for name, mask in (("boolean", seen), ("additive", added))}
other = tokens.clone()
other[0, -1] += 1
future = (logits("eager", seen, other)[0] - logits("eager", seen)[0]).abs().max().item()
print(f"transformers {transformers.__version__}, off by: {off}; first row moved by the last token: {future:.2g}")
assert max(off[how] for how in off if how != ("eager", "boolean")) < 1e-3
assert off["eager", "boolean"] > 1 and future > 0.01, "eager takes a boolean mask for one now"
PY
