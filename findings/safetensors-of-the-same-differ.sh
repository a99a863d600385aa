#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata of several entries are other bytes each time they are saved,
# in one process too: the entries come in an order of chance. With one entry or none the bytes are always
# the same, so it is not seen until a second is added. A file's hash does not say whether its content is the
# same, and a cache or a registry that goes by it stores the same weights again.
# Seen: six entries, 20 times saved: more than one content, all of them read as equal; one entry: one content.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "safetensors==0.8.0" numpy
"$work/env/bin/python" - <<'PY'
import hashlib
import json

import numpy
import safetensors
from safetensors.numpy import save

tensors = {"keys": numpy.arange(4.0), "values": numpy.ones(4)}


def saved(number):
    entries = {f"entry{n}": str(n) for n in range(number)}
    return [save(tensors, metadata=entries) for _ in range(20)]


def header(content):
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])


one, six = saved(1), saved(6)
hashes = {hashlib.sha256(content).hexdigest()[:8] for content in six}
print(f"safetensors {safetensors.__version__}: 20 times saved, contents with one entry {len(set(one))}, "
      f"with six {len(hashes)}")
assert len(set(one)) == 1
assert all(header(content) == header(six[0]) for content in six)
assert len(hashes) > 1, "the same is saved as the same bytes now"
PY
