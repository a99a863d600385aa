"""The kernels compile for real GPUs; Triton and its assembler need none present for that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

triton = pytest.importorskip("triton")

SMALLEST_SHARED_BYTES = 99 * 1024  # what a block may use on compute capability 8.6 and 8.9

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"
    ),
    # said by triton 3.9 when a compile names no choice; our launches name one
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def _compile(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> Any:
    from triton.backends.compiler import GPUTarget

    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    at = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=at)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.parametrize(("dtype", "capability"), [("*bf16", 80), ("*fp16", 90), ("*fp32", 90)])
def test_attention_compiles_and_fits(dtype: str, capability: int) -> None:
    from chunkcache_kernels import attention

    tile = attention._KEYS // 2 if dtype == "*fp32" else attention._KEYS
    compiled = _compile(
        attention._attend_kernel,
        {"q": dtype, "k": dtype, "v": dtype, "out": "*fp32", "lse": "*fp32",
         "slots": "*i64", "positions": "*i64", "scale_log2": "fp32"},
        {"DIM": 128, "DIM_PADDED": 128, "GROUP": 3, "GROUP_PADDED": 4,
         "ROWS": attention._FOLDED_ROWS // 4, "KEYS": tile, "PAGED": True, "SPLIT": True,
         "PRECISION": "ieee" if dtype == "*fp32" else "tf32"},
        capability,
    )  # fmt: skip
    assert "cubin" in compiled.asm
    assert compiled.metadata.shared <= SMALLEST_SHARED_BYTES


@pytest.mark.parametrize("run", [False, True], ids=["slots", "a run"])
def test_placing_compiles(run: bool) -> None:
    from chunkcache_kernels import rope

    tensors = ("k", "v", "k_pool", "v_pool")
    types = dict.fromkeys(tensors, "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
    constants: dict[str, Any] = {"HALF": 40, "HALF_PADDED": 64, "TOKENS": 32, "RUN": run}
    if run:
        constants["slots"] = None
    else:
        types["slots"] = "*i64"
    assert "cubin" in _compile(rope._place_kernel, types, constants, 90).asm


def test_rotating_and_gathering_compile() -> None:
    from chunkcache_kernels import paged, rope

    types = {"x": "*bf16", "out": "*bf16", "cos": "*fp32", "sin": "*fp32"}
    sizes = {"HALF": 32, "HALF_PADDED": 32, "TOKENS": 32}
    assert "cubin" in _compile(rope._rotate_kernel, types, sizes, 90).asm
    pools = dict.fromkeys(("k_pool", "v_pool", "k_out", "v_out"), "*bf16") | {"slots": "*i64"}
    widths = {"DIM": 80, "WIDTH": 240, "WIDTH_PADDED": 256, "TOKENS": 16}
    assert "cubin" in _compile(paged._gather_kernel, pools, widths, 90).asm
