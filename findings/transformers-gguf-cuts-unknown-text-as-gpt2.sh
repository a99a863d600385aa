#!/usr/bin/env bash
# transformers 5.24.0: a GGUF file names the way in which text is cut before the merges (`tokenizer.ggml.pre`). The names
# that transformers knows it follows (llama-bpe, qwen2, ...); for one that it does not know, `smollm` among
# them, it cuts as GPT-2 does, without a warning. SmolLM2 was trained with single digits, cut off before the
# spaces are looked at: indented numbers, as in tables and code, become other tokens than those it learnt.
# Seen, the same pieces: "  12" is two blanks and 1, 2 by qwen2 and by SmolLM2's own rule; with smollm it is a blank,
# a blank, and 12. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check \
  "transformers==5.24.0" "tokenizers==0.23.3" "gguf==0.19.0" "torch==2.13.0" numpy
"$work/env/bin/python" - "$work" <<'PY'
import pathlib
import sys

import gguf
import transformers
from tokenizers import pre_tokenizers

MERGES = ["1 2", "Ġ Ġ"]
pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "ĠĠ", "<|endoftext|>"]


def tokens(rule):
    folder = pathlib.Path(sys.argv[1], rule)
    folder.mkdir()
    file = gguf.GGUFWriter(folder / "model.gguf", "llama")
    file.add_context_length(64)
    file.add_embedding_length(8)
    file.add_feed_forward_length(8)
    file.add_block_count(1)
    file.add_head_count(1)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(rule)
    file.add_token_list(pieces)
    file.add_token_types([gguf.TokenType.NORMAL] * (len(pieces) - 1) + [gguf.TokenType.CONTROL])
    file.add_token_merges(MERGES)
    file.add_eos_token_id(len(pieces) - 1)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")


found = {rule: tokens(rule) for rule in ("llama-bpe", "qwen2", "gpt-2", "smollm")}
own = tokens("of its own").backend_tokenizer
own.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
])
cut = {rule: tokenizer.tokenize("  12") for rule, tokenizer in found.items()}
print(f"transformers {transformers.__version__}: {cut}, by SmolLM2's own rule {own.encode('  12').tokens}")
assert own.encode("  12").tokens == ["ĠĠ", "1", "2"]
assert cut["qwen2"][-2:] == ["1", "2"] and cut["llama-bpe"] != cut["qwen2"]
assert cut["smollm"] == cut["gpt-2"] == ["Ġ", "Ġ", "12"], "smollm is a rule that is known now"
PY
