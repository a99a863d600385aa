#!/usr/bin/env bash
# transformers 5.24.0: with a mask of 0 and 1 that hides tokens in the middle of a prompt, a passage say, a forward pass leaves
# the others where they are, and `generate` counts places by the mask, so that all behind the hole move up. The same
# ids and the same mask are thus two prompts, with no word of it: logits of a forward pass are no reference for what
# generate answers. `position_ids` given to either brings them together.
# Seen, tiny random Llama, 10 of 40 tokens hidden: generate's first logits are those of the prompt without them, forward's
# are off by more than 0.1; with the places given both ways are equal. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
"$work/env/bin/python" -W ignore - <<'PY'
import torch
import transformers

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
)
model = transformers.LlamaForCausalLM(config).eval()
tokens = torch.randint(3, 64, (1, 40))
mask = torch.ones_like(tokens)
mask[0, 10:20] = 0
closed = (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def forward(tokens, **more):
    return model(tokens, **more).logits[0, -1]


@torch.no_grad()
def generate(**more):
    made = model.generate(tokens, attention_mask=mask, max_new_tokens=1, do_sample=False, eos_token_id=None,
                          pad_token_id=0, return_dict_in_generate=True, output_logits=True, **more)
    return made.logits[0][0]


def off(one, other):
    return (one - other).abs().max().item()


without = forward(tokens[:, mask[0].bool()])
found = {
    "generate from the prompt without them": off(generate(), without),
    "forward from generate": off(forward(tokens, attention_mask=mask), generate()),
    "forward from generate, both closed up": off(forward(tokens, attention_mask=mask, position_ids=closed), generate()),
    "forward from generate, both left": off(
        forward(tokens, attention_mask=mask), generate(position_ids=torch.arange(40)[None])),
}
print(f"transformers {transformers.__version__}: {found}")
closed_up, as_they_are, given, left = found.values()
assert closed_up < 1e-3 and given < 1e-3 and left < 1e-3
assert as_they_are > 0.1, "forward and generate put tokens behind a hole in the same places now"
PY
