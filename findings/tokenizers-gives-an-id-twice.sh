#!/usr/bin/env bash
# tokenizers 0.23.3: a new token's id is the number of words, not one more than the highest id. In a vocabulary with a
# gap in its ids, as one has that was cut down to fit a language or a task, that id may be taken: two pieces are
# then one to the model, and reading the old one's id back gives the new one's text. Nothing is raised.
# Seen: words a 0, b 1, c 3, [UNK] 4; the first added token is 4, an unknown word and it are encoded alike, and [4] is
# decoded to it; one added after another gets an id of its own. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "tokenizers==0.23.3"
"$work/env/bin/python" - <<'PY'
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 3, "[UNK]": 4}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
before = tokenizer.encode("a nonsense").ids, tokenizer.decode([4])
tokenizer.add_tokens(["<tool>"])
tokenizer.add_special_tokens(["<end>"])
after = tokenizer.encode("a nonsense").ids, tokenizer.decode([4])
added = {token: tokenizer.token_to_id(token) for token in ("<tool>", "<end>")}
print(f"tokenizers {tokenizers.__version__}: added {added}; 'a nonsense' and [4] before {before}, after {after}")
assert before[0] == after[0] == [0, 4] and before[1] != "<tool>"
assert added == {"<tool>": 4, "<end>": 5}, "a new token gets an id of its own now"
assert after[1] == "<tool>"
PY
