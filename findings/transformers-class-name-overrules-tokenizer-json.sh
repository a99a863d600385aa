#!/usr/bin/env bash
# transformers 5.24.0: `AutoTokenizer` takes only words and merges from a tokenizer.json whose neighbour says
# `"tokenizer_class": "GPT2Tokenizer"`; how text is cut before the merges is GPT-2's way, whatever the file says.
# Version 4 took the file as it is. Models do say that and cut in another way (single digits, for one); they
# are then given tokens that they have never seen so. `PreTrainedTokenizerFast` in its place takes the file.
# Seen, of a file that cuts digits one by one: "in 1234" is ... 1 2 3 4 by tokenizers and by
# PreTrainedTokenizerFast, and ... 1234 by GPT2Tokenizer. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "tokenizers==0.23.3"
"$work/env/bin/python" - "$work" <<'PY'
import json
import pathlib
import sys

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

merges = [("1", "2"), ("3", "4"), ("12", "34")]
pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
made.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
])
made.decoder = decoders.ByteLevel()
made.add_special_tokens(["<|endoftext|>"])


def tokens(named):
    folder = pathlib.Path(sys.argv[1], named)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": named, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return transformers.AutoTokenizer.from_pretrained(folder).tokenize("in 1234")


own = made.encode("in 1234").tokens
found = {named: tokens(named) for named in ("PreTrainedTokenizerFast", "GPT2Tokenizer")}
print(f"transformers {transformers.__version__}: tokenizers {own}, {found}")
assert own[-4:] == ["1", "2", "3", "4"] and found["PreTrainedTokenizerFast"] == own
assert found["GPT2Tokenizer"][-1] == "1234", "the file is what counts now"
PY
