"""The C kernels from Python: attention over pages, norms, products, whole layers of few rows.

Twin: `portable.py`, and torch's own functions for norms and products.
"""

from __future__ import annotations

import ctypes as c
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from chunkcache_kernels.compiler import build_library
from chunkcache_kernels.portable import mass_of
from chunkcache_kernels.structs import (
    TYPES,
    ArenaC,
    AttendC,
    LayerIOC,
    PlaceC,
    WeightC,
    WeightsC,
    WriteC,
    open_library,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chunkcache_kernels.arena import Arena
    from chunkcache_kernels.layout import Layout
    from chunkcache_kernels.portable import Heads, Rotary


class Team:
    """Threads that share the work of the C kernels; one caller at a time. `close` ends them."""

    def __init__(self, cache: Path, page_tokens: int, members: int | None = None) -> None:
        """Build or find the library and start the threads.

        Args:
            cache: where the library is kept.
            page_tokens: tokens in a page, a multiple of 8.
            members: threads, the caller's included; as many as there are cores unless given.

        Raises:
            NoCompiler: the library cannot be built.
        """
        self.library = open_library(build_library(cache, page_tokens))
        self.page_tokens = page_tokens
        members = members or len(os.sched_getaffinity(0))
        self._team = self.library.team_new(members, *_openmp())
        if not self._team:
            raise MemoryError("no memory for a team of threads")
        self.members: int = self.library.team_members(self._team)

    @property
    def handle(self) -> int:
        """What the C functions take; raises ValueError after `close`."""
        if self._team is None:
            raise ValueError("the team was closed")
        return int(self._team)

    def use(self, members: int) -> None:
        """Let so many members take part from now on."""
        self.library.team_use(self.handle, members)

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._team is not None:
            self.library.team_free(self._team)
            self._team = None

    # ------------------------------------------------------------ rows

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm of rows `[R, width]` by fp32 `weight`, in fp32, cast once."""
        assert x.is_contiguous() and weight.dtype is torch.float32
        out = torch.empty_like(x)
        self.library.chunkcache_norm(
            self.handle, x.data_ptr(), out.data_ptr(), weight.data_ptr(), eps,
            TYPES[x.dtype], x.shape[0], x.shape[1],
        )  # fmt: skip
        return out

    def silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up of rows `[R, gate ‖ up]` → `[R, width]`."""
        assert gate_up.is_contiguous()
        rows, both = gate_up.shape
        out = gate_up.new_empty((rows, both // 2))
        self.library.chunkcache_silu(
            self.handle, gate_up.data_ptr(), out.data_ptr(), TYPES[gate_up.dtype], rows, both // 2
        )
        return out

    def product(self, weight: WeightC, x: torch.Tensor) -> torch.Tensor:
        """fp32 `[R, rows]` of fp32 `x` `[R, cols]`; made for few rows."""
        assert x.is_contiguous() and x.dtype is torch.float32 and x.shape[1] == weight.cols
        out = x.new_empty((x.shape[0], weight.rows))
        self.library.chunkcache_product(
            self.handle, c.addressof(weight), x.data_ptr(), out.data_ptr(), x.shape[0]
        )
        return out


@dataclass(slots=True, eq=False)
class CompiledStep:
    """A layout bound to arenas and angles, as the C functions take it."""

    team: Team
    turned: AttendC
    still: AttendC
    scratch: torch.Tensor
    keeps: list[object] = field(default_factory=list)  # what the pointers point to

    @classmethod
    def bind(
        cls, team: Team, layout: Layout, arenas: Sequence[Arena], heads: Heads, rotary: Rotary
    ) -> CompiledStep:
        """Structures for all layers of a step. `rotary` covers all positions of the step."""
        assert arenas[0].page_tokens == team.page_tokens, "the library is of another page size"
        assert rotary.cos.shape[0] > layout.longest_turn
        described = (ArenaC * len(arenas))(*map(_arena, arenas))
        parts = torch.empty(int(layout.row_parts[-1]), heads.heads, heads.dim + 2)
        arrays = [
            layout.row_positions, layout.runs, layout.pages, layout.looks,
            layout.key_positions, layout.items, layout.row_parts,
        ]  # fmt: skip
        for array in arrays:
            assert array.dtype == np.int32 and array.flags.c_contiguous

        def attend(rotary_dim: int) -> AttendC:
            return AttendC(
                c.addressof(described), *(array.ctypes.data for array in arrays),
                layout.num_rows, len(layout.items), heads.heads, heads.kv_heads, heads.dim,
                rotary_dim, rotary.cos.data_ptr(), rotary.sin.data_ptr(), heads.scale,
                heads.softcap, heads.window, heads.block, parts.data_ptr(),
            )  # fmt: skip

        turned, still = attend(heads.rotary_dim), attend(0)
        size = team.library.chunkcache_scratch_bytes(c.addressof(turned))
        scratch = torch.empty(team.members * size, dtype=torch.uint8)
        return cls(team, turned, still, scratch, [described, parts, arrays, rotary, list(arenas)])

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

        `qkv` `[R, (heads + 2 kv_heads) · dim]`; `slots` int32 `[R]`, -1 writes nothing.
        """
        of = self.turned if turned else self.still
        assert slots.dtype == np.int32 and len(slots) == of.num_rows
        write = WriteC(slots.ctypes.data, _pointer(query_norm), _pointer(key_norm), eps, arena)
        io = self.io(layer, qkv, qkv)
        self.team.library.chunkcache_write(
            self.team.handle, c.addressof(of), c.addressof(write), c.addressof(io), qkv.data_ptr()
        )

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
        """
        of = self.turned if turned else self.still
        out = qkv.new_empty((of.num_rows, of.heads * of.dim))
        io = self.io(layer, qkv, out)
        io.sinks = _pointer(sinks)
        self.team.library.chunkcache_attend(
            self.team.handle, c.addressof(of), c.addressof(io), self.scratch.data_ptr()
        )
        return out

    def io(self, layer: int, qkv: torch.Tensor, out: torch.Tensor) -> LayerIOC:
        """What one layer reads and writes."""
        assert qkv.stride(1) == 1 and qkv.shape[0] == self.turned.num_rows
        return LayerIOC(
            qkv.data_ptr(), out.data_ptr(), qkv.stride(0), out.stride(0),
            TYPES[qkv.dtype], TYPES[out.dtype], layer, None,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class CompiledWeights:
    """Rows of one sequence bound to what they see: their attention to every position."""

    step: CompiledStep
    call: WeightsC
    context: int
    scratch: torch.Tensor
    keeps: Layout

    @classmethod
    def bind(
        cls, team: Team, layout: Layout, arenas: Sequence[Arena], heads: Heads, rotary: Rotary
    ) -> CompiledWeights:
        """For all layers; `layout` is of one sequence."""
        assert len(layout.sequences) == 1 and len(layout.run_looks) == len(layout.runs)
        step = CompiledStep.bind(team, layout, arenas, heads, rotary)
        context = int(layout.row_positions[-1]) + 1
        looks = layout.run_looks
        call = WeightsC(step.turned, looks.ctypes.data, len(looks), context, None)
        size = team.library.chunkcache_weights_scratch_bytes(c.addressof(call))
        scratch = torch.empty(team.members * size, dtype=torch.uint8)
        return cls(step, call, context, scratch, layout)

    def weights(self, layer: int, query: torch.Tensor, *, turned: bool = True) -> torch.Tensor:
        """fp32 `[R, last position + 1]` of queries `[R, heads, dim]` before RoPE; rows sum to 1."""
        query = query.contiguous().flatten(1)
        out = torch.zeros((query.shape[0], self.context))
        self.call.of = self.step.turned if turned else self.step.still
        self.call.out = out.data_ptr()
        io = self.step.io(layer, query, query)
        team = self.step.team
        team.library.chunkcache_weights(
            team.handle, c.addressof(self.call), c.addressof(io), self.scratch.data_ptr()
        )
        return out

    def mass(
        self, layer: int, query: torch.Tensor, edges: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """See `portable.PortableWeights`."""
        return mass_of(self.weights(layer, query, turned=turned), edges)

    def received(
        self, layer: int, query: torch.Tensor, votes: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """See `portable.PortableWeights`."""
        return votes @ self.weights(layer, query, turned=turned)


def place_chunk(
    team: Team,
    arena: Arena,
    first: int,
    kv: torch.Tensor,
    pages: np.ndarray,
    angles: tuple[torch.Tensor, torch.Tensor],
    *,
    plainly: bool = False,
) -> None:
    """See `portable.place_chunk`. In the caller's thread alone, whatever the team does meanwhile.

    Lets other Python threads run. `plainly` writes whole pages number by number, as parts of pages
    are written: the slow twin.
    """
    cos, sin = angles
    layers, _, tokens, heads, dim = kv.shape
    assert arena.page_tokens == team.page_tokens, "the library is of another page size"
    assert kv.is_contiguous() and kv.device.type == "cpu"
    assert pages.dtype == np.int64 and len(pages) * arena.page_tokens >= tokens
    assert cos.is_contiguous() and sin.is_contiguous() and len(cos) >= tokens
    assert arena.keys.shape[2:4] == (heads, dim) and first + layers <= len(arena.keys)
    described = _arena(arena)
    scratch = np.empty((2, arena.page_tokens, dim), dtype=np.float32)
    call = PlaceC(
        c.addressof(described), kv.data_ptr(), pages.ctypes.data, cos.data_ptr(), sin.data_ptr(),
        scratch.ctypes.data,
        TYPES[kv.dtype], first, layers, tokens, heads, dim, cos.shape[1], plainly,
    )  # fmt: skip
    team.library.chunkcache_place(c.addressof(call))


def _openmp() -> tuple[int | None, int | None]:
    """GNU OpenMP's entry points in this process; None twice where torch uses another runtime."""
    found = ThreadpoolController().select(user_api="openmp").lib_controllers
    libraries = [lib for lib in found if lib.prefix == "libgomp"]
    if len(found) != 1 or not libraries:
        return None, None
    library = libraries[0].dynlib
    functions = (library.GOMP_parallel, library.omp_get_num_threads)
    first, second = (c.cast(function, c.c_void_p).value for function in functions)
    return first, second


def _pointer(tensor: torch.Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.dtype is torch.float32 and tensor.is_contiguous()
    return tensor.data_ptr()


def _arena(arena: Arena) -> ArenaC:
    assert arena.keys.is_contiguous() and arena.values.is_contiguous()
    scales = (arena.key_scales, arena.value_scales)
    return ArenaC(
        arena.keys.data_ptr(), arena.values.data_ptr(), *map(_pointer, scales),
        arena.keys.stride(0), *(0 if s is None else s.stride(0) for s in scales),
        TYPES[arena.keys.dtype],
    )  # fmt: skip
