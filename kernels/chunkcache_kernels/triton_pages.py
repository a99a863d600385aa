"""Attention over pages on a GPU: what `compiled.py` is on a CPU, in Triton.

Twin: `portable.py`. A step's arrays go to the GPU once, in one copy, and serve all layers; nothing
is read back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton

from chunkcache_kernels import fours, triton_attend, triton_kernels
from chunkcache_kernels.sending import sent
from chunkcache_kernels.triton_plan import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.arena import Arena
    from chunkcache_kernels.layout import Layout
    from chunkcache_kernels.portable import Heads, Rotary
    from chunkcache_kernels.triton_plan import Plan

MAX_DIM = 256  # a wider head's tiles do not fit the shared memory of small GPUs
MAX_ARENAS = 2
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of rows
PAGE_TYPES = (*DTYPES, torch.int8, fours.PAGE_TYPE)
LOG2_E = math.log2(math.e)
NO_WINDOW = 1 << 30  # more positions than there are, and no overflow
_CHAINED, _SHARED = 64, 64  # rows times query heads per key head that one program takes
_EXACTLY = 32  # of fp32 products, which tensor cores do not make: more do not fit registers
_FEW = 32  # queries, bound by memory: loads go further ahead of products
_WIDE = 128  # channels; of more, 64 shared queries are kept out of the registers as they walk
_LARGE = 128  # of chained rows where shared memory is large
_LARGE_SHARED_BYTES = 160 * 1024  # of a block: compute capability 8.0, 9.0 and later large ones
_BOUND_KEYS = 64
_WRITE_ROWS = 16
_MERGED = 16384  # numbers of parts on their way to one program at a time


@dataclass(slots=True, eq=False)
class TritonStep:
    """A layout bound to arenas and angles, as the Triton kernels take it."""

    arenas: list[Arena]
    heads: Heads
    rotary: Rotary
    num_rows: int
    arrays: dict[str, torch.Tensor]  # int32, on the device
    # first item, how many, most queries of one, whether they share
    kinds: list[tuple[int, int, int, bool]]
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # mixed values, largest scores, sums
    counters: torch.Tensor  # int32 [rows · heads]: parts that have come; 0 between launches
    kv_heads: torch.Tensor | None = None  # int32: those that this is for; all if None
    # of the last write, here and there; not known here if they came with the step (`FixedStep`)
    slots: tuple[np.ndarray | None, torch.Tensor] | None = None

    @classmethod
    def bind(
        cls,
        layout: Layout,
        arenas: Sequence[Arena],
        heads: Heads,
        rotary: Rotary,
        *,
        shares: bool = True,
        kv_heads: Sequence[int] | None = None,
    ) -> TritonStep:
        """What all layers of a step share. `rotary` covers all positions of the step.

        Args:
            shares: rows of several sequences look at a page together; else each looks alone.
            kv_heads: the key heads whose rows see what `layout` says; all unless given.

        Cost: numpy over the segments, one copy, one launch that looks at every key position.
        """
        device, group = arenas[0].keys.device, heads.heads // heads.kv_heads
        check(layout, arenas, heads, rotary)
        num_heads = heads.kv_heads if kv_heads is None else len(kv_heads)
        made = planned(layout, arenas, heads, num_heads=num_heads, shares=shares)
        arrays = sent(
            {
                "row_positions": layout.row_positions,
                "key_positions": layout.key_positions,
                "pages": made.pages,
                "looks": made.looks,
                "row_parts": made.row_parts,
                "items": made.items,
                "entries": made.entries,
                "stretches": made.stretches,
                "bounds": np.zeros((len(made.stretches), 2), np.int32),
                "kv_heads": np.array([] if kv_heads is None else kv_heads, np.int32),
            },
            device,
        )
        first = made.num_shared
        counts = (0, first), (first, len(made.items) - first)
        sizes = [tile_of(most * group) for most in made.most_rows]
        both = zip(counts, sizes, (True, False), strict=True)
        kinds = [(*of, size, shares) for of, size, shares in both if of[1]]
        room = room_for_parts(int(made.row_parts[-1]) if made.is_merged else 1, heads, device)
        counters = torch.zeros(layout.num_rows * heads.heads, dtype=torch.int32, device=device)
        step = cls(
            list(arenas), heads, rotary, layout.num_rows, arrays, kinds, room, counters,
            None if kv_heads is None else arrays["kv_heads"],
        )  # fmt: skip
        step.find_bounds(len(made.stretches), max(made.most_rows))
        return step

    def find_bounds(self, grid: int, most_rows: int) -> None:
        """Look which keys of each stretch any row sees, for all layers. Cost: one launch."""
        names = "items", "entries", "stretches", "looks", "row_positions", "key_positions", "bounds"
        heads = self.heads
        triton_attend.bound_kernel[(grid,)](
            *(self.arrays[name] for name in names), self.arrays.get("counts"),
            heads.window or NO_WINDOW, heads.block or NO_WINDOW,
            PAGE=self.arenas[0].page_tokens, ROWS=triton.next_power_of_2(most_rows),
            KEYS=_BOUND_KEYS, enable_fp_fusion=True,
        )  # fmt: skip

    def write(
        self,
        layer: int,
        qkv: torch.Tensor,
        slots: np.ndarray | None,
        *,
        arena: int = 0,
        turned: bool = True,
        query_norm: torch.Tensor | None = None,
        key_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """Norm queries and keys in place, rotate keys and write them and the values to `slots`.

        `qkv` `[R, (heads + 2 kv_heads) · dim]`; `slots` int32 `[R]`, -1 writes nothing. They are
        copied to the device when they differ from the last ones; None: they came with the step.
        Cost: one launch.
        """
        heads, into = self.heads, self.arenas[arena]
        width = (heads.heads + 2 * heads.kv_heads) * heads.dim
        assert qkv.shape[1] == width, "rows of queries, keys and values"
        assert into.key_scales is None, "rows are written as they are, not rounded"
        self._check_rows(qkv)
        for norm in (query_norm, key_norm):
            assert norm is None or (norm.dtype is torch.float32 and norm.is_contiguous())
            assert norm is None or qkv.stride(0) >= width, "rows normed in place would overlap"
        at = self._slots(slots, qkv.device)
        heads_to_do = heads.kv_heads + (0 if query_norm is None else heads.heads)
        triton_kernels.write_kernel[(triton.cdiv(self.num_rows, _WRITE_ROWS), heads_to_do)](
            qkv, into.keys[layer], into.values[layer], self.rotary.cos, self.rotary.sin,
            at, self.arrays["row_positions"], query_norm, key_norm,
            self.num_rows, qkv.stride(0), eps,
            HEADS=heads.heads, KV_HEADS=heads.kv_heads, ROWS=_WRITE_ROWS,
            enable_fp_fusion=False,  # the sums are then rounded as torch rounds them
            **self.sizes(turned),
        )  # fmt: skip

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool = True,
        sinks: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[R, heads · dim]`, like `qkv`, whose rows begin with their queries before RoPE.

        Args:
            sinks: fp32 `[heads]`: scores that take weight and give no value.
            lse: fp32 `[R, heads]`, becomes the logarithm of each row's sum of e^score, sinks aside.

        Products in the arena's number type (of int8 pages the queries'), in fp32 if the queries
        are; sums in fp32. Cost: a launch, two where few rows and many are in one step.
        """
        out = qkv.new_empty((self.num_rows, self.heads.heads * self.heads.dim))
        self.attend_into(out, layer, qkv, turned=turned, sinks=sinks, lse=lse)
        return out

    def attend_into(
        self,
        out: torch.Tensor,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool,
        sinks: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        edges: torch.Tensor | None = None,
    ) -> None:
        """See `attend`; `edges` int32 `[E]`: instead of values, weights between these positions,
        fp32 `[R, heads · (E + 1)]`; for a step that does not share.
        """
        heads, arrays = self.heads, self.arrays
        assert qkv.shape[1] >= heads.heads * heads.dim, "a row begins with its queries"
        assert out.is_contiguous() and out.shape[0] == self.num_rows
        self._check_rows(qkv)
        wide = qkv.dtype is torch.float32
        exact = wide or self.is_exact
        width = heads.dim if edges is None else len(edges) + 1
        across, parts = padded(width), self.parts
        if width > heads.dim:
            parts = parts[0].new_empty((*parts[0].shape[:2], width)), *parts[1:]
        num_heads = heads.kv_heads if self.kv_heads is None else len(self.kv_heads)
        for first, count, queries, shared in self.kinds:
            keys, warps, stages = tiles(heads.dim, exact, queries, self.rounded_page, shared=shared)
            triton_attend.attend_kernel[(count, num_heads)](
                qkv, *self.tensors(layer), edges, self.rotary.cos, self.rotary.sin, self.kv_heads,
                arrays["items"][first : first + count], arrays.get("counts"), arrays["entries"],
                arrays["stretches"], arrays["bounds"], arrays["looks"], arrays["pages"],
                arrays["row_positions"], arrays["key_positions"], arrays["row_parts"], *parts,
                self.counters, sinks, out, lse, qkv.stride(0),
                heads.scale * LOG2_E, heads.softcap * LOG2_E,
                heads.window or NO_WINDOW, heads.block or NO_WINDOW,
                KV_HEADS=heads.kv_heads, GROUP=heads.heads // heads.kv_heads,
                WIDTH=width, WIDTH_PADDED=across, QUERIES=queries, KEYS=keys, WIDE=wide,
                PRECISION="ieee" if exact else "tf32", CAPPED=heads.softcap > 0,
                SHARED=shared, LIMITED=heads.window > 0 or heads.block > 0,
                AT_ONCE=max(1, min(8, _MERGED // (queries * across))),
                num_warps=warps, num_stages=stages, enable_fp_fusion=True,
                **self.sizes(turned),
            )  # fmt: skip

    def tensors(self, layer: int) -> list[torch.Tensor | None]:
        """Keys, values and their scales of both arenas in one layer."""
        found: list[torch.Tensor | None] = []
        for arena in self.arenas:
            parts = arena.keys, arena.values, arena.key_scales, arena.value_scales
            of_layer = [None if part is None else part[layer] for part in parts]
            if arena.keys.dtype is fours.PAGE_TYPE:  # words of eight numbers, and of two ranges
                of_layer = [None if part is None else part.view(torch.int32) for part in of_layer]
            found += of_layer
        return found + [None] * (4 * MAX_ARENAS - len(found))

    def sizes(self, turned: bool) -> dict[str, int]:
        """What the kernels know when they are compiled."""
        dim, rotary = self.heads.dim, self.heads.rotary_dim if turned else 0
        page = self.arenas[0].page_tokens
        return {"DIM": dim, "DIM_PADDED": padded(dim), "ROTARY": rotary, "PAGE": page}

    @property
    def is_exact(self) -> bool:
        """Whether the pages want products in fp32."""
        return _is_exact(self.arenas)

    @property
    def rounded_page(self) -> int:
        """Tokens of a page if any arena has rounded numbers, else 0."""
        is_rounded = any(arena.key_scales is not None for arena in self.arenas)
        return self.arenas[0].page_tokens if is_rounded else 0

    def _slots(self, slots: np.ndarray | None, device: torch.device) -> torch.Tensor:
        if slots is not None:
            assert slots.dtype == np.int32 and len(slots) == self.num_rows
            known = None if self.slots is None else self.slots[0]
            if known is None or not np.array_equal(known, slots):
                kept = slots.copy()
                self.slots = kept, sent({"slots": kept}, device)["slots"]
        assert self.slots is not None, "no slots came with the step"
        return self.slots[1]

    def _check_rows(self, qkv: torch.Tensor) -> None:
        assert qkv.shape[0] == self.num_rows and qkv.dtype in DTYPES
        assert qkv.stride(1) == 1, "the numbers of a row must be neighbours"
        assert qkv.device == self.arrays["items"].device


def tiles(
    dim: int, exact: bool, queries: int, rounded_page: int = 0, *, shared: bool = True
) -> tuple[int, int, int]:
    """Keys that a program takes at a time, its warps, what the registers hold, by `ptxas`; stages.

    `exact`: the products are in fp32. `rounded_page`: tokens of a page of rounded numbers, whose
    scales are loaded once for a tile that lies in one page. Stages are shared out between the loads
    of a tile and that of its page's number before them: 5 give two tiles on their way, 3 one.
    """
    across = padded(dim)
    if exact:
        keys, warps, stages = 16, 8 if across > 64 else 4, 3
    elif queries > _CHAINED:
        keys, warps, stages = 64, 8, 3
    else:
        keys, stages = max(16, min(64, 4096 // across)), 5 if queries <= _FEW else 3
        warps = 8 if across > 128 or (shared and queries > _FEW) else 4
    within = rounded_page & -rounded_page  # the largest power of two that divides it
    return (min(keys, within) if within >= 16 else keys), warps, stages


def planned(
    layout: Layout, arenas: Sequence[Arena], heads: Heads, *, num_heads: int, shares: bool = True
) -> Plan:
    """What each program does on these arenas' device, for so many key heads."""
    device, group = arenas[0].keys.device, heads.heads // heads.kv_heads
    most = [max(1, of // group) for of in _queries(device, heads.dim, _is_exact(arenas))]
    return plan(
        layout, page_tokens=arenas[0].page_tokens, group=group,
        shared_rows=most[0] if shares else 0, chained_rows=most[1],
        items=-(-programs(device) // num_heads),
    )  # fmt: skip


def room_for_parts(
    parts: int, heads: Heads, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mixed values, largest scores and sums of so many parts."""
    shape = parts, heads.heads
    mixed = torch.empty((*shape, heads.dim), dtype=torch.float32, device=device)
    top, total = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    return mixed, top, total


def tile_of(queries: int) -> int:
    """The tile that so many are multiplied in; tl.dot wants 16."""
    size: int = triton.next_power_of_2(queries)
    return max(16, size)


def _is_exact(arenas: Sequence[Arena]) -> bool:
    return any(arena.keys.dtype is torch.float32 for arena in arenas)


def _queries(device: torch.device, dim: int, exact: bool) -> tuple[int, int]:
    """Queries of the largest shared and chained item."""
    if exact:
        return _EXACTLY, _EXACTLY
    if padded(dim) > _WIDE:
        return _FEW, _CHAINED
    is_large = device.type == "cuda"
    is_large = is_large and _properties(device)["max_shared_mem"] >= _LARGE_SHARED_BYTES
    return _SHARED, _LARGE if is_large else _CHAINED


def programs(device: torch.device) -> int:
    """How many keep the device busy: two for each of its processors."""
    if device.type != "cuda":
        return 16
    return 2 * _properties(device)["multiprocessor_count"]


def _properties(device: torch.device) -> dict[str, int]:
    """What Triton's driver knows of a device."""
    number = torch.cuda.current_device() if device.index is None else device.index
    known: dict[str, int] = triton.runtime.driver.active.utils.get_device_properties(number)
    return known


def padded(dim: int) -> int:
    """The power of two that holds so many channels; tl.dot wants 16."""
    width: int = triton.next_power_of_2(dim)
    return max(16, width)


def check(layout: Layout, arenas: Sequence[Arena], heads: Heads, rotary: Rotary) -> None:
    """Fail unless the kernels read these as they lie."""
    assert len(arenas) <= MAX_ARENAS
    assert heads.heads % heads.kv_heads == 0 and heads.dim <= MAX_DIM
    assert heads.rotary_dim % 2 == 0 and heads.rotary_dim <= heads.dim
    page_tokens, device = arenas[0].page_tokens, arenas[0].keys.device
    for arena in arenas:
        _check_arena(arena, heads, page_tokens, device)
    for angles in (rotary.cos, rotary.sin) if heads.rotary_dim else ():
        assert angles.dtype is torch.float32 and angles.is_contiguous()
        assert angles.shape[1] == heads.rotary_dim and angles.device == device
        assert angles.shape[0] > layout.longest_turn


def _check_arena(arena: Arena, heads: Heads, page_tokens: int, device: torch.device) -> None:
    kept, scales = (arena.keys, arena.values), (arena.key_scales, arena.value_scales)
    packs = arena.keys.dtype is fours.PAGE_TYPE
    first = (*arena.keys.shape[:2], heads.kv_heads)
    if packs:
        assert arena.keys.shape == (*first, page_tokens, heads.dim // 2)
        assert arena.values.shape == (*first, heads.dim, page_tokens // 2)
    else:
        assert arena.keys.shape == (*first, heads.dim, page_tokens)
        assert arena.values.shape == (*first, page_tokens, heads.dim)
    for tensor in kept:
        assert tensor.is_contiguous() and tensor.device == device
        assert tensor.dtype in PAGE_TYPES and tensor.dtype is arena.keys.dtype
    for part in scales:
        assert (part is None) == (arena.keys.dtype in DTYPES)
        wanted = torch.bfloat16 if packs else torch.float32
        assert part is None or (part.is_contiguous() and part.dtype is wanted)
