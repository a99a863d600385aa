#!/usr/bin/env bash
# triton 3.9.0: in the interpreter (TRITON_INTERPRET=1) `.to(tl.bfloat16)` of int8 copies the number into bf16's bits
# instead of converting it, because bf16 is kept there as 16-bit integers: 64 becomes 5.9e-39. By way of fp32 the
# cast is right, and so is the one to fp16. A kernel that dequantises int8 looks broken where it is not.
# Seen: [64, -3, 1] -> bf16 gives tiny numbers or NaN; -> fp32 -> bf16 and -> fp16 give 64, -3, 1.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "triton==3.9.0" "torch==2.13.0" numpy
cat > "$work/cast.py" <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def cast(source, by, straight, half, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    numbers = tl.load(source + at)
    tl.store(straight + at, numbers.to(tl.bfloat16))
    tl.store(by + at, numbers.to(tl.float32).to(tl.bfloat16))
    tl.store(half + at, numbers.to(tl.float16))


numbers = torch.tensor([64, -3, 1, 0], dtype=torch.int8)
by, straight = (torch.zeros(4, dtype=torch.bfloat16) for _ in range(2))
half = torch.zeros(4, dtype=torch.float16)
cast[(1,)](numbers, by, straight, half, SIZE=4)
print(f"triton {triton.__version__}, interpreted: int8 {numbers.tolist()} is bf16 {straight.tolist()}")
assert by.tolist() == half.tolist() == numbers.tolist()
assert straight.tolist() != numbers.tolist(), "int8 becomes bf16 as it should now"
PY
TRITON_INTERPRET=1 "$work/env/bin/python" "$work/cast.py"
