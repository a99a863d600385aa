"""Attention over pages on a GPU: what `compiled.py` is on a CPU, in Triton.

Twin: `portable.py`. A step's arrays go to the GPU once, in one copy, and serve all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton

from chunkcache_kernels import triton_kernels as programs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.arena import Arena
    from chunkcache_kernels.layout import Layout
    from chunkcache_kernels.portable import Heads, Rotary

MAX_DIM = 256  # a wider head's tiles do not fit the shared memory of small GPUs
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LOG2_E = math.log2(math.e)
_QUERIES = 64  # rows times query heads per key head that one program takes
_QUERIES_EXACTLY = 32  # of fp32 products, which tensor cores do not make: more do not fit registers
_BOUND_KEYS = 64
_WRITE_ROWS = 16
_MERGED = 1024  # numbers of a row that one program merges
_NO_WINDOW = 1 << 30  # more positions than there are, and no overflow
_ALIGNED = 4  # int32 numbers: Triton compiles another kernel for pointers that are not at 16 bytes


@dataclass(slots=True, eq=False)
class TritonStep:
    """A layout bound to arenas and angles, as the Triton kernels take it."""

    arenas: list[Arena]
    heads: Heads
    rotary: Rotary
    num_rows: int
    arrays: dict[str, torch.Tensor]  # int32, on the device
    bounds: list[int]  # arena a has items bounds[a] to bounds[a + 1]
    most_looks: int  # of an item
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # mixed values, largest scores, sums
    slots: tuple[np.ndarray, torch.Tensor] | None = None  # of the last write, here and there

    @classmethod
    def bind(
        cls, layout: Layout, arenas: Sequence[Arena], heads: Heads, rotary: Rotary
    ) -> TritonStep:
        """What all layers of a step share. `rotary` covers all positions of the step.

        Cost: numpy over the items, one copy, one launch that looks at every key position once.
        """
        device, group = arenas[0].keys.device, heads.heads // heads.kv_heads
        _check(layout, arenas, heads, rotary)
        exact = any(arena.keys.dtype is torch.float32 for arena in arenas)
        queries = _QUERIES_EXACTLY if exact else _QUERIES
        items, bounds = _cut(layout, len(arenas), max(1, queries // group))
        arrays = _to_device(
            {
                "row_positions": layout.row_positions,
                "pages": layout.pages,
                "looks": layout.looks,
                "key_positions": layout.key_positions,
                "row_parts": layout.row_parts,
                "items": items,
                "bounds": np.zeros((len(items), 2), np.int32),
            },
            device,
        )
        most_looks = int(items[:, 3].max())
        programs.bound_kernel[(len(items),)](
            arrays["items"], arrays["looks"], arrays["row_positions"], arrays["key_positions"],
            arrays["bounds"], heads.window or _NO_WINDOW, heads.block or _NO_WINDOW,
            PAGE=arenas[0].page_tokens, LOOKS=triton.next_power_of_2(most_looks),
            KEYS=_BOUND_KEYS, enable_fp_fusion=True,
        )  # fmt: skip
        shape = (int(layout.row_parts[-1]), heads.heads)
        parts = (
            torch.empty((*shape, heads.dim), dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
        )
        rows = layout.num_rows
        return cls(list(arenas), heads, rotary, rows, arrays, bounds, most_looks, parts)

    def write(
        self,
        layer: int,
        qkv: torch.Tensor,
        slots: np.ndarray,
        *,
        arena: int = 0,
        turned: bool = True,
        query_norm: torch.Tensor | None = None,
        key_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """Norm queries and keys in place, rotate keys and write them and the values to `slots`.

        `qkv` `[R, (heads + 2 kv_heads) · dim]`; `slots` int32 `[R]`, -1 writes nothing. They are
        copied to the device when they differ from the last ones. Cost: one launch.
        """
        heads, into = self.heads, self.arenas[arena]
        width = (heads.heads + 2 * heads.kv_heads) * heads.dim
        assert qkv.shape[1] == width, "rows of queries, keys and values"
        self._check_rows(qkv)
        for norm in (query_norm, key_norm):
            assert norm is None or (norm.dtype is torch.float32 and norm.is_contiguous())
            assert norm is None or qkv.stride(0) >= width, "rows normed in place would overlap"
        assert slots.dtype == np.int32 and len(slots) == self.num_rows
        if self.slots is None or not np.array_equal(self.slots[0], slots):
            kept = slots.copy()
            self.slots = kept, _to_device({"slots": kept}, qkv.device)["slots"]
        heads_to_do = heads.kv_heads + (0 if query_norm is None else heads.heads)
        programs.write_kernel[(triton.cdiv(self.num_rows, _WRITE_ROWS), heads_to_do)](
            qkv, into.keys[layer], into.values[layer], self.rotary.cos, self.rotary.sin,
            self.slots[1], self.arrays["row_positions"], query_norm, key_norm,
            self.num_rows, qkv.stride(0), eps,
            HEADS=heads.heads, KV_HEADS=heads.kv_heads, ROWS=_WRITE_ROWS,
            enable_fp_fusion=False,  # the sums are then rounded as torch rounds them
            **self._sizes(turned),
        )  # fmt: skip

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[R, heads · dim]`, like `qkv`, whose rows begin with their queries before RoPE.

        `sinks` fp32 `[heads]`: scores that take weight and give no value.
        Products in the arena's number type, in fp32 if the queries are; sums in fp32. Cost: a
        launch for each arena that the rows look at, and one to merge.
        """
        heads = self.heads
        assert qkv.shape[1] >= heads.heads * heads.dim, "a row begins with its queries"
        self._check_rows(qkv)
        for number, arena in enumerate(self.arenas):
            if self.bounds[number] < self.bounds[number + 1]:
                self._look(number, arena, layer, qkv, turned)
        out = qkv.new_empty((self.num_rows, heads.heads * heads.dim))
        merged = min(triton.next_power_of_2(heads.heads), _MERGED // _padded(heads.dim))
        programs.merge_kernel[(self.num_rows, triton.cdiv(heads.heads, merged))](
            *self.parts, self.arrays["row_parts"], sinks, out,
            HEADS=heads.heads, DIM=heads.dim, DIM_PADDED=_padded(heads.dim), MERGED=merged,
            enable_fp_fusion=True,
        )  # fmt: skip
        return out

    def _look(self, number: int, arena: Arena, layer: int, qkv: torch.Tensor, turned: bool) -> None:
        """The parts of all items of one arena."""
        heads, arrays = self.heads, self.arrays
        first, end = self.bounds[number], self.bounds[number + 1]
        wide = qkv.dtype is torch.float32
        exact = wide or arena.keys.dtype is torch.float32
        keys, warps = tiles(heads.dim, exact)
        group = heads.heads // heads.kv_heads
        programs.attend_kernel[(end - first, heads.kv_heads)](
            qkv, arena.keys[layer], arena.values[layer], self.rotary.cos, self.rotary.sin,
            arrays["items"][first:end], arrays["bounds"][first:end], arrays["pages"],
            arrays["looks"], arrays["row_positions"], arrays["key_positions"], *self.parts,
            qkv.stride(0), heads.scale * _LOG2_E, heads.softcap * _LOG2_E,
            heads.window or _NO_WINDOW, heads.block or _NO_WINDOW,
            KV_HEADS=heads.kv_heads, GROUP=group,
            QUERIES=max(16, triton.next_power_of_2(self.most_looks * group)),  # tl.dot wants 16
            KEYS=keys, WIDE=wide, PRECISION="ieee" if exact else "tf32",
            CAPPED=heads.softcap > 0,
            num_warps=warps, enable_fp_fusion=True,
            **self._sizes(turned),
        )  # fmt: skip

    def _sizes(self, turned: bool) -> dict[str, int]:
        dim, rotary = self.heads.dim, self.heads.rotary_dim if turned else 0
        page = self.arenas[0].page_tokens
        return {"DIM": dim, "DIM_PADDED": _padded(dim), "ROTARY": rotary, "PAGE": page}

    def _check_rows(self, qkv: torch.Tensor) -> None:
        assert qkv.shape[0] == self.num_rows and qkv.dtype in DTYPES
        assert qkv.stride(1) == 1, "the numbers of a row must be neighbours"
        assert qkv.device == self.arrays["items"].device


def tiles(dim: int, exact: bool) -> tuple[int, int]:
    """Keys that a program takes at a time, and its warps: what the registers hold, by `ptxas`.

    `exact`: the products are in fp32.
    """
    padded = _padded(dim)
    if exact:
        return 16, 8 if padded > 64 else 4
    return max(16, min(64, 4096 // padded)), 8 if padded > 128 else 4


def _padded(dim: int) -> int:
    width: int = triton.next_power_of_2(dim)
    return max(16, width)


def _check(layout: Layout, arenas: Sequence[Arena], heads: Heads, rotary: Rotary) -> None:
    assert heads.heads % heads.kv_heads == 0 and heads.dim <= MAX_DIM
    assert heads.rotary_dim % 2 == 0 and heads.rotary_dim <= heads.dim
    page_tokens, device = arenas[0].page_tokens, arenas[0].keys.device
    for arena in arenas:
        layers, pages = arena.keys.shape[:2]
        assert arena.keys.shape == (layers, pages, heads.kv_heads, heads.dim, page_tokens)
        assert arena.values.shape == (layers, pages, heads.kv_heads, page_tokens, heads.dim)
        for tensor in (arena.keys, arena.values):
            assert tensor.is_contiguous() and tensor.device == device and tensor.dtype in DTYPES
        assert arena.keys.dtype is arena.values.dtype
    for angles in (rotary.cos, rotary.sin) if heads.rotary_dim else ():
        assert angles.dtype is torch.float32 and angles.is_contiguous()
        assert angles.shape[1] == heads.rotary_dim and angles.device == device
        assert angles.shape[0] > layout.longest_turn


def _cut(layout: Layout, num_arenas: int, most: int) -> tuple[np.ndarray, list[int]]:
    """The looks of each run in pieces as large as a GPU likes them, arena by arena.

    Returns int32 `[items, 4]`: first page, number of pages, first look, number of looks; and where
    the items of each arena begin, with the end of the last.
    """
    runs, of_items = layout.runs, layout.items
    first_looks = of_items[np.searchsorted(of_items[:, 0], np.arange(len(runs))), 1]
    num_looks = np.bincount(of_items[:, 0], of_items[:, 2], minlength=len(runs)).astype(np.int32)
    pieces = -(-num_looks // most)
    order = np.argsort(runs[:, 0], kind="stable")
    run = np.repeat(order, pieces[order])
    before = np.cumsum(pieces[order]) - pieces[order]
    done = (np.arange(len(run)) - np.repeat(before, pieces[order])) * most
    looks = np.minimum(most, num_looks[run] - done)
    items = np.stack([runs[run, 1], runs[run, 2], first_looks[run] + done, looks], axis=1)
    bounds = np.searchsorted(runs[run, 0], np.arange(num_arenas + 1))
    return items.astype(np.int32), bounds.tolist()


def _to_device(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Arrays of int32, in one copy that the CPU does not wait for."""
    sizes = [-(-array.size // _ALIGNED) * _ALIGNED for array in arrays.values()]
    packed = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    for part, array in zip(torch.split(packed, sizes), arrays.values(), strict=True):
        assert array.dtype == np.int32
        part[: array.size] = torch.from_numpy(array.reshape(-1))
    moved = torch.split(packed.to(device, non_blocking=True), sizes)
    return {
        name: part[: array.size].view(array.shape)
        for part, (name, array) in zip(moved, arrays.items(), strict=True)
    }
