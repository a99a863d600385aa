"""Steps of few rows over arrays that stay where they are on the device, for CUDA graphs.

A graph launches the same programs over the same memory every time. So the arrays of a step have
room for any step up to a size, programs take their share of as many items as the step says it has,
and rows that it has not are written nowhere and attend to nothing. Twin: `TritonStep`, bound anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache_kernels.sending import pins
from chunkcache_kernels.triton_pages import (
    TritonStep,
    check,
    planned,
    programs,
    room_for_parts,
    tile_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.arena import Arena
    from chunkcache_kernels.layout import Layout
    from chunkcache_kernels.portable import Heads, Rotary
    from chunkcache_kernels.triton_plan import Plan

_ALIGNED = 4  # int32 numbers: 16 bytes, as where `sent` puts arrays
_FEWEST_PARTS, _FEWEST_PAGES = 64, 256


@dataclass(frozen=True, slots=True)
class Room:
    """How much there is room for; `queries`: of the largest item, padded."""

    rows: int
    queries: int
    parts: int
    pages: int

    @classmethod
    def of(cls, made: Plan, rows: int, group: int) -> Room:
        """Room for a plan whose rows all share, and some more; for `rows` rows."""
        assert made.num_shared == len(made.items), "rows in tiles of their own have no fixed step"
        parts, pages = (
            max(least, 1 << (count - 1).bit_length())
            for least, count in (
                (_FEWEST_PARTS, len(made.entries)),
                (_FEWEST_PAGES, len(made.pages)),
            )
        )
        return cls(rows, tile_of(made.most_rows[0] * group), parts, pages)

    def holds(self, other: Room) -> bool:
        """Whether what fits in the other one fits in here."""
        return all(
            getattr(self, name) >= getattr(other, name)
            for name in ("rows", "queries", "parts", "pages")
        )

    def and_that_of(self, other: Room) -> Room:
        """Room for what fits in either."""
        return Room(
            max(self.rows, other.rows), max(self.queries, other.queries),
            max(self.parts, other.parts), max(self.pages, other.pages),
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class FixedStep:
    """A step whose arrays are another's each time: see `load`."""

    room: Room
    step: TritonStep
    packed: torch.Tensor  # int32: all of its arrays that are sent
    starts: dict[str, int]  # where each begins in it

    @classmethod
    def empty(cls, room: Room, arenas: Sequence[Arena], heads: Heads, rotary: Rotary) -> FixedStep:
        """Without a step in it. Cost: memory on the device."""
        device, page_tokens = arenas[0].keys.device, arenas[0].page_tokens
        shapes = {
            "counts": (2,), "row_positions": (room.rows,), "row_parts": (room.rows + 1,),
            "slots": (room.rows,), "items": (room.parts, 4), "entries": (room.parts, 2),
            "stretches": (room.parts, 6), "looks": (room.parts, 2), "pages": (room.pages,),
            "key_positions": (room.pages * page_tokens,),
        }  # fmt: skip
        starts, end = {}, 0
        for name, shape in shapes.items():
            starts[name] = end
            end += -(-int(np.prod(shape)) // _ALIGNED) * _ALIGNED
        packed = torch.zeros(end, dtype=torch.int32, device=device)
        arrays = {
            name: packed[starts[name] : starts[name] + int(np.prod(shape))].view(shape)
            for name, shape in shapes.items()
        }
        arrays["bounds"] = torch.zeros((room.parts, 2), dtype=torch.int32, device=device)
        kinds = [(0, -(-programs(device) // heads.kv_heads), room.queries, True)]
        step = TritonStep(
            list(arenas), heads, rotary, room.rows, arrays, kinds,
            room_for_parts(room.parts, heads, device),
            torch.zeros(room.rows * heads.heads, dtype=torch.int32, device=device),
            slots=(None, arrays["slots"]),
        )  # fmt: skip
        return cls(room, step, packed, starts)

    def load(self, made: Plan, layout: Layout, slots: np.ndarray) -> None:
        """Bring a step there, for all that is queued from now on.

        Args:
            made: of the layout; `Room.of` it must fit in here.
            slots: int32 `[rows]`.

        Cost: one copy, of what is used.
        """
        group = self.step.heads.heads // self.step.heads.kv_heads
        assert self.room.holds(Room.of(made, layout.num_rows, group)), "no room for the step"
        check(layout, self.step.arenas, self.step.heads, self.step.rotary)
        missing = self.room.rows - layout.num_rows
        arrays = {
            "counts": np.array([len(made.items), len(made.stretches)], np.int32),
            "row_positions": np.pad(layout.row_positions, (0, missing)),
            "row_parts": np.pad(made.row_parts, (0, missing), mode="edge"),
            "slots": np.pad(slots, (0, missing), constant_values=-1),
            "items": made.items, "entries": made.entries, "stretches": made.stretches,
            "looks": made.looks, "pages": made.pages, "key_positions": layout.key_positions,
        }  # fmt: skip
        used = self.starts["key_positions"] + layout.key_positions.size
        host = torch.empty(used, dtype=torch.int32, pin_memory=pins(self.packed.device))
        numbers = host.numpy()
        for name, start in self.starts.items():
            array = arrays[name]
            assert array.dtype == np.int32
            numbers[start : start + array.size] = array.reshape(-1)
        self.packed[:used].copy_(host, non_blocking=True)

    def find_bounds(self) -> None:
        """See `TritonStep`; to be done once for a step that was loaded."""
        step = self.step
        group = step.heads.heads // step.heads.kv_heads
        step.find_bounds(programs(self.packed.device), self.room.queries // group)

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
        """See `TritonStep`; of `qkv` `[rows there is room for, …]`, to the slots that were loaded,
        whatever is given.
        """
        del slots  # a graph would write to the first step's for ever
        self.step.write(
            layer, qkv, None, arena=arena, turned=turned, query_norm=query_norm, key_norm=key_norm,
            eps=eps,
        )  # fmt: skip

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `TritonStep`; rows that the step has not are left as they come."""
        return self.step.attend(layer, qkv, turned=turned, sinks=sinks)


def plan_if_fixed(layout: Layout, arenas: Sequence[Arena], heads: Heads) -> Plan | None:
    """What each program does, if every row of a layout shares its pages' programs."""
    made = planned(layout, arenas, heads, num_heads=heads.kv_heads)
    return made if made.num_shared == len(made.items) else None
