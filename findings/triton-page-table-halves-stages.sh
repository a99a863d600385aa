#!/usr/bin/env bash
# triton 3.9.0: in a loop over pages, whose numbers come out of a table, num_stages=3 (the default) and 4 give one tile
# on its way, as 2 would: the stages are shared out between the load of a page's number and the load of the page. The
# tile is then asked for behind the product and waited for before the next one. Without the table 3 gives two tiles.
# Seen (compute capability 8.0, PTX): tiles of shared memory through a table 1, 1, 2 for 3, 4, 5 stages; without 2, 3, 4.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "triton==3.9.0"
cat > "$work/stages.py" <<'PY'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget


@triton.jit
def walk(query, keys, pages, out, count, TABLE: tl.constexpr):
    at = tl.arange(0, 64)
    tile = at[:, None] * 64 + at[None, :]
    first, total = tl.load(query + tile), tl.zeros((64, 64), tl.float32)
    for number in range(count):
        page = tl.load(pages + number) if TABLE else number
        total += tl.dot(first, tl.load(keys + page * 4096 + tile))
    tl.store(out + tile, total)


def tiles(table, stages):
    """How many tiles of keys there is room for."""
    signature = {"query": "*fp16", "keys": "*fp16", "pages": "*i32", "out": "*fp32", "count": "i32", "TABLE": "constexpr"}
    aligned = {(n,): [["tt.divisibility", 16]] for n in range(4)}
    source = triton.compiler.ASTSource(walk, signature, {(5,): table}, aligned)
    options = {"num_stages": stages, "num_warps": 4, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    return max(int(n) for n in re.findall(r"memdesc<(\d+)x64x64xf16", made.asm["ttgir"]))


found = {table: [tiles(table, stages) for stages in (3, 4, 5)] for table in (True, False)}
print(f"triton {triton.__version__}: tiles for 3, 4, 5 stages: by a table {found[True]}, without {found[False]}")
assert found == {True: [1, 1, 2], False: [2, 3, 4]}
PY
TRITON_CACHE_DIR="$work/cache" "$work/env/bin/python" "$work/stages.py"
