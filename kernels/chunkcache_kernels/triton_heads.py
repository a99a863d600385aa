"""Pages by head on a GPU: a step's kernels, once for each kind of head. Twin: `head_lists.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache_kernels.head_lists import check_kinds
from chunkcache_kernels.triton_pages import TritonStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from chunkcache_kernels.arena import Arena
    from chunkcache_kernels.head_lists import Kind
    from chunkcache_kernels.portable import Heads, Rotary


@dataclass(slots=True, eq=False)
class TritonHeads:
    """Rows bound to pages by head: a step for each kind, all with the same rows."""

    steps: list[TritonStep]

    @classmethod
    def bind(
        cls, kinds: Sequence[Kind], arenas: Sequence[Arena], heads: Heads, rotary: Rotary
    ) -> TritonHeads:
        """See `TritonStep.bind`."""
        check_kinds(kinds, heads)
        return cls(
            [TritonStep.bind(k.layout, arenas, heads, rotary, kv_heads=k.kv_heads) for k in kinds]
        )

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `TritonStep.attend`. Cost: its launches, for each kind."""
        first = self.steps[0]
        out = qkv.new_empty((first.num_rows, first.heads.heads * first.heads.dim))
        for step in self.steps:
            step.attend_into(out, layer, qkv, turned=turned, sinks=sinks)
        return out
