#!/usr/bin/env bash
# transformers 5.24.0: `generate(prompt, past_key_values=cache)` leaves out of the prompt what the cache holds already,
# unless that is all of it: where a prefill has left the whole prompt in the cache, the prompt is run once more
# behind it, and its tokens see those to their right in the first copy. There is no error; the logits are other
# ones, and the cache has all keys twice. With all but the last token cached it is right.
# Seen, tiny random Llama, 20 tokens, 6 new ones: after 19 cached tokens generate's own logits and 25 in the cache;
# after 20 the first logits off by more than 0.1 and 45 in the cache. Fails when that changes.
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
prompt = torch.randint(1, 64, (1, 20))


@torch.no_grad()
def first_logits(cached):
    cache = transformers.DynamicCache(config=config)
    if cached:
        model(prompt[:, :cached], past_key_values=cache)
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, max_new_tokens=6, do_sample=False,
        eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )
    return made.logits[0][0], cache.get_seq_length()


own, length = first_logits(0)
found = {}
for cached in (19, 20):
    logits, kept = first_logits(cached)
    found[cached] = (logits - own).abs().max().item(), kept
print(f"transformers {transformers.__version__}: tokens cached: (first logits off by, tokens in the cache at the end): "
      f"{found}, without a cache {length}")
assert length == 25 and found[19][0] < 1e-3 and found[19][1] == 25
assert found[20][0] > 0.1 and found[20][1] == 45, "a prompt that is cached as a whole is used now"
PY
