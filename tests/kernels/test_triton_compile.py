"""The kernels compile for real GPUs; Triton and its assembler need none present for that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

triton = pytest.importorskip("triton")

SMALLEST_SHARED_BYTES = 99 * 1024  # what a block may use on compute capability 8.6 and 8.9
INDICES = (
    "items", "bounds", "pages", "looks", "row_positions", "key_positions", "row_parts", "slots",
)  # fmt: skip
NUMBERS = ("cos", "sin", "mixed_parts", "top_parts", "total_parts", "query_norm", "key_norm",
           "sinks")  # fmt: skip

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


def _compile(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int = 4
) -> Any:
    """As a launch compiles it whose pointers and strides are multiples of 16."""
    from triton.backends.compiler import GPUTarget

    types = dict.fromkeys(INDICES, "*i32") | dict.fromkeys(NUMBERS, "*fp32") | types
    types |= {"scale_log2": "fp32", "cap_log2": "fp32", "eps": "fp32"}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    at = {(names.index(name),): value for name, value in constants.items()}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, of in signature.items()
        if of.startswith("*") or name == "stride_row"
    }
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=at, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps})


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("rows", "arena", "dim", "queries", "capped"),
    [("*bf16", "*bf16", 128, 64, False), ("*fp16", "*fp16", 256, 64, False),
     ("*fp32", "*fp32", 128, 32, False), ("*bf16", "*fp16", 80, 16, False),
     ("*bf16", "*bf16", 256, 64, True)],
)  # fmt: skip
def test_attention_compiles_and_fits(
    rows: str, arena: str, dim: int, queries: int, capped: bool, capability: int
) -> None:
    from chunkcache_kernels import triton_kernels, triton_pages

    exact = arena == "*fp32"
    keys, warps = triton_pages.tiles(dim, exact)
    compiled = _compile(
        triton_kernels.attend_kernel,
        {"qkv": rows, "keys": arena, "values": arena},
        {"KV_HEADS": 8, "GROUP": 3, "DIM": dim, "DIM_PADDED": triton.next_power_of_2(dim),
         "ROTARY": dim, "PAGE": 16, "QUERIES": queries, "KEYS": keys, "WIDE": rows == "*fp32",
         "PRECISION": "ieee" if exact else "tf32", "CAPPED": capped},
        capability, warps,
    )  # fmt: skip
    assert "cubin" in compiled.asm
    assert compiled.metadata.shared <= SMALLEST_SHARED_BYTES
    # keys and values come 16 bytes at a time, while the tile before them is multiplied
    copies = [line for line in compiled.asm["ptx"].splitlines() if "cp.async.cg" in line]
    assert copies and all("0x10" in line for line in copies)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("normed", [False, True])
def test_writing_compiles(normed: bool, capability: int) -> None:
    from chunkcache_kernels import triton_kernels

    constants: dict[str, Any] = {
        "HEADS": 9, "KV_HEADS": 3, "DIM": 80, "DIM_PADDED": 128, "ROTARY": 40, "PAGE": 8,
        "ROWS": 16,
    }  # fmt: skip
    if not normed:
        constants |= {"query_norm": None, "key_norm": None}
    types = {"qkv": "*bf16", "keys": "*fp16", "values": "*fp16"}
    assert "cubin" in _compile(triton_kernels.write_kernel, types, constants, capability).asm


@pytest.mark.parametrize("capability", [80, 90])
def test_bounds_and_merging_compile(capability: int) -> None:
    from chunkcache_kernels import triton_kernels

    sizes = {"PAGE": 16, "LOOKS": 32, "KEYS": 64}
    assert "cubin" in _compile(triton_kernels.bound_kernel, {}, sizes, capability).asm
    sizes = {"HEADS": 9, "DIM": 80, "DIM_PADDED": 128, "MERGED": 8}
    for sinks in ({}, {"sinks": None}):
        merging = _compile(
            triton_kernels.merge_kernel, {"out": "*bf16"}, {**sizes, **sinks}, capability
        )
        assert "cubin" in merging.asm
