"""The kernels compile for real GPUs; Triton and its assembler need none present for that."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from triton_launches import Loop, Resources

if TYPE_CHECKING:
    from pathlib import Path

triton = pytest.importorskip("triton")

SMALLEST_SHARED_BYTES = 99 * 1024  # what a block may use on compute capability 8.6 and 8.9
INDICES = (
    "items", "entries", "stretches", "bounds", "pages", "looks", "row_positions", "key_positions",
    "row_parts", "counters", "slots", "tiles", "counts", "chosen", "kv_heads",
)  # fmt: skip
NUMBERS = (
    "cos", "sin", "mixed_parts", "top_parts", "total_parts", "query_norm", "key_norm", "sinks",
    "lse", "votes", "received", "scores",
)  # fmt: skip
LARGEST_SHARED_BYTES = 163 * 1024  # on compute capability 8.0; 9.0 has 227 KiB

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
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int = 4,
    stages: int = 3,
) -> Any:  # fmt: skip
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
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def _arenas(*types: str) -> tuple[dict[str, str], dict[str, None]]:
    """Types of what two arenas have, and what they have not."""
    known: dict[str, str] = {}
    absent: dict[str, None] = {}
    for number, of in enumerate(types):
        known |= {f"keys_{number}": of, f"values_{number}": of}
        for name in (f"key_scales_{number}", f"value_scales_{number}"):
            if of in ("*i8", "*i32"):  # of 4 bits, words of numbers and of ranges
                known[name] = "*fp32" if of == "*i8" else "*i32"
            else:
                absent[name] = None
    return known, absent


def _attention(
    rows: str, chunks: str, dim: int, queries: int, *, capability: int, shared: bool = True,
    capped: bool = False, by_head: bool = False, fixed: bool = False,
) -> Any:  # fmt: skip
    """Attention over an arena of the rows' number type and one of the chunks', in pages of 32."""
    from chunkcache_kernels import triton_attend, triton_pages

    exact, across = rows == "*fp32", triton.next_power_of_2(dim)
    page = 32
    rounded = page if chunks in ("*i8", "*i32") else 0
    keys, warps, stages = triton_pages.tiles(dim, exact, queries, rounded, shared=shared)
    arenas, absent = _arenas(rows, chunks)
    absent |= {"edges": None, "lse": None, "sinks": None} | ({} if by_head else {"kv_heads": None})
    absent |= {} if fixed else {"counts": None}
    return _compile(
        triton_attend.attend_kernel,
        {"qkv": rows, "out": rows, **arenas},
        {"KV_HEADS": 8, "GROUP": 4, "DIM": dim, "DIM_PADDED": across, "WIDTH": dim,
         "WIDTH_PADDED": across, "ROTARY": dim, "PAGE": page, "QUERIES": queries, "KEYS": keys,
         "WIDE": exact, "PRECISION": "ieee" if exact else "tf32", "CAPPED": capped,
         "SHARED": shared, "LIMITED": False,
         "AT_ONCE": max(1, min(8, 16384 // (queries * across))), **absent},
        capability, warps, stages,
    )  # fmt: skip


# an arena of either kind is in each, so few of them show all that is compiled
@pytest.mark.parametrize(
    ("rows", "chunks", "dim", "queries", "shared", "capped", "by_head", "fixed", "capability"),
    [("*bf16", "*i8", 128, 128, False, False, False, False, 80),
     ("*bf16", "*i32", 128, 128, False, False, True, False, 90),
     ("*bf16", "*i32", 80, 16, True, True, False, True, 80),
     ("*bf16", "*bf16", 128, 16, True, False, False, True, 90),
     ("*fp16", "*i8", 256, 32, True, True, True, False, 80),
     ("*fp32", "*fp32", 128, 32, True, False, False, True, 80)],
)  # fmt: skip
def test_attention_compiles_and_fits(
    rows: str, chunks: str, dim: int, queries: int, shared: bool, capped: bool, by_head: bool,
    fixed: bool, capability: int, tmp_path: Path,
) -> None:  # fmt: skip
    exact = rows == "*fp32"
    compiled = _attention(
        rows, chunks, dim, queries, shared=shared, capped=capped, by_head=by_head, fixed=fixed,
        capability=capability,
    )  # fmt: skip
    used, ptx = Resources.of(compiled, tmp_path / "made"), compiled.asm["ptx"]
    large = queries > 64
    assert used.shared <= (LARGEST_SHARED_BYTES if large else SMALLEST_SHARED_BYTES)
    assert used.programs(LARGEST_SHARED_BYTES) >= (2 if queries <= 16 else 1)
    # what does not fit the registers is kept elsewhere while a tile is turned, not while it walks
    loops = Loop.of(compiled, tmp_path / "made")
    assert used.stack <= 1024 and len(loops) == 2 and max(loop.spills for loop in loops) <= 20
    # keys and values come 16 bytes at a time, while the tile before them is multiplied
    copies = [line for line in ptx.splitlines() if "cp.async.cg" in line]
    assert copies and all("0x10" in line for line in copies)
    if queries <= 32 and not exact:  # bound by memory
        assert min(loop.ahead for loop in loops) >= 1, "loads go on while others are multiplied"
    assert ("wgmma.mma_async" in ptx) == (capability == 90 and large)
    assert ("mma.sync" in ptx or "wgmma" in ptx) != exact, "fp32 is multiplied as such"
    _check_merge(ptx)


# what an H100's memory takes for a tile, in clocks, when int8 is 1.8 and int4 2.5 times as fast as
# bf16: 715 and 515; four warps have a scheduler each
@pytest.mark.parametrize(("chunks", "most"), [("*i8", 715), ("*i32", 430)])
def test_decode_takes_few_instructions(chunks: str, most: int, tmp_path: Path) -> None:
    compiled = _attention("*bf16", chunks, 128, 16, capability=90)
    of_chunks, of_rows = Loop.of(compiled, tmp_path / "made")
    assert of_chunks.instructions <= most and of_rows.instructions <= 345
    assert of_chunks.spills == of_rows.spills == 0


def _check_merge(ptx: str) -> None:
    """A part is written by all threads, then counted; who merges reads what L2 has."""
    (count,) = re.findall(r".*\batom\..*", ptx)
    assert "atom.global.gpu.acq_rel.add.u32" in count
    before, after = ptx.split(count)
    written = before.rindex("st.global")
    assert "bar.sync" in before[written:]
    reads = re.findall(r"\bld\.global\S*", after)
    assert reads and all(".cg" in of for of in reads), set(reads)


def test_sums_of_weights_compile() -> None:
    from chunkcache_kernels import triton_attend

    capability = 90
    arenas, absent = _arenas("*bf16", "*i8")
    sizes: dict[str, Any] = {
        "KV_HEADS": 8, "GROUP": 4, "DIM": 128, "DIM_PADDED": 128, "ROTARY": 128, "PAGE": 32,
        "QUERIES": 16, "KEYS": 32, "WIDE": False, "PRECISION": "tf32", "CAPPED": False,
    }  # fmt: skip
    mass = {
        **sizes,
        "SHARED": False,
        "LIMITED": True,
        "WIDTH": 12,
        "WIDTH_PADDED": 16,
        "AT_ONCE": 8,
        "kv_heads": None,
        "counts": None,
        **absent,
    }
    types = {"qkv": "*bf16", "out": "*fp32", "edges": "*i32", **arenas}
    assert "cubin" in _compile(triton_attend.attend_kernel, types, mass, capability).asm
    given = {**sizes, "key_scales_0": None}
    compiled = _compile(triton_attend.received_kernel, types, given, capability)
    assert compiled.metadata.shared <= SMALLEST_SHARED_BYTES


def test_records_and_choices_compile() -> None:
    from chunkcache_kernels import triton_choice, triton_records

    capability = 80
    sizes = {"HEADS": 8, "DIM": 128, "DIM_PADDED": 128, "ROTARY": 128, "PAGE": 32,
             "PAGE_PADDED": 32}  # fmt: skip
    raw: dict[str, Any] = {"key_scales": None, "value_scales": None}
    for bits, kept in ((0, "*bf16"), (8, "*bf16"), (4, "*i8"), (4, "*u8")):
        scales = "*bf16" if kept == "*u8" else "*fp32"
        types = {"numbers": "*bf16", "ranges": "*bf16", "coded": "*u8", "keys": kept,
                 "values": kept, "key_scales": scales, "value_scales": scales}  # fmt: skip
        given = {**sizes, "BITS": bits, "GROUP": 64, **(raw if kept == "*bf16" else {})}
        assert "cubin" in _compile(triton_records.promote_kernel, types, given, capability).asm
    types = {"kv": "*bf16", "ranges": "*bf16", "coded": "*u8"}
    given = {"CHANNELS": 1024, "BITS": 4, "GROUP": 64, "GROUP_PADDED": 64, "BLOCK": 64}
    assert "cubin" in _compile(triton_records.quantise_kernel, types, given, capability).asm
    given = {"BLOCK": 4096}
    assert "cubin" in _compile(triton_choice.topk_kernel, {}, given, capability, 8).asm


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


@pytest.mark.parametrize(("capability", "fixed"), [(80, False), (90, True)])
def test_bounds_compile(capability: int, fixed: bool) -> None:
    from chunkcache_kernels import triton_attend

    sizes = {"PAGE": 16, "ROWS": 32, "KEYS": 64} | ({} if fixed else {"counts": None})
    assert "cubin" in _compile(triton_attend.bound_kernel, {}, sizes, capability).asm
