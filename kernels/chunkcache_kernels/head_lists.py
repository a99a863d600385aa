"""Pages by head: retrieval heads look at everything, streaming heads at the first positions and the
last ones (DuoAttention, arXiv 2410.10819). A list of pages is a layout; heads with the same list
are a *kind*, and the kernels run once for each kind, over its own table.

Rows are written by an ordinary step: all heads keep all keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache_kernels.arena import HIDDEN, Arena, Segment
from chunkcache_kernels.layout import Layout, SequenceLayout
from chunkcache_kernels.portable import PortableStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.portable import Heads, Rotary


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Key heads that look at the same pages."""

    kv_heads: tuple[int, ...]
    layout: Layout  # its rows are those of the other kinds


def streamed(sequence: SequenceLayout, *, first: int, last: int) -> SequenceLayout:
    """What streaming heads see of a sequence: positions below `first`, and the `last` ones before
    its first row with all from there on, as in the paper's prefill by pieces (§3.4): a row run
    alone sees exactly `last` before itself. Pages without any of them are left out.
    """
    begin, segments = int(sequence.positions[0]) - last, []
    for segment in sequence.segments:
        stands = segment.key_positions
        shown = (stands != HIDDEN) & ((stands < first) | (stands >= begin))
        of_pages = shown.reshape(len(segment.pages), -1)
        kept = of_pages.any(axis=1)
        positions = np.where(shown, stands, np.int32(HIDDEN)).reshape(of_pages.shape)[kept]
        if kept.any():
            pages = segment.pages[kept]
            segments.append(Segment(segment.arena, pages, segment.begin, positions.reshape(-1)))
    return SequenceLayout(sequence.positions, segments)


def check_kinds(kinds: Sequence[Kind], heads: Heads) -> None:
    """Fail unless every key head is in one kind, none is empty, and all have the same rows."""
    assert all(kind.kv_heads for kind in kinds)
    assert sorted(h for kind in kinds for h in kind.kv_heads) == list(range(heads.kv_heads))
    rows = kinds[0].layout.row_positions
    assert all(np.array_equal(kind.layout.row_positions, rows) for kind in kinds)


@dataclass(slots=True, eq=False)
class PortableHeads:
    """Rows bound to pages by head, in torch."""

    steps: list[tuple[torch.Tensor, PortableStep]]  # query heads, and the step of those alone
    heads: Heads

    @classmethod
    def bind(
        cls, kinds: Sequence[Kind], arenas: Sequence[Arena], heads: Heads, rotary: Rotary
    ) -> PortableHeads:
        """Each kind has arenas of its own: what its heads have, copied now."""
        check_kinds(kinds, heads)
        steps, group = [], heads.heads // heads.kv_heads
        for kind in kinds:
            of = torch.tensor(kind.kv_heads, device=arenas[0].keys.device)
            theirs = replace(heads, heads=len(of) * group, kv_heads=len(of))
            step = PortableStep(kind.layout, [_of_heads(a, of) for a in arenas], theirs, rotary)
            asking = (of[:, None] * group + torch.arange(group, device=of.device)).flatten()
            steps.append((asking, step))
        return cls(steps, heads)

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `PortableStep`; `qkv` may be queries alone."""
        dim = self.heads.dim
        query = qkv[:, : self.heads.heads * dim].reshape(len(qkv), -1, dim)
        out = torch.empty_like(query)
        for asking, step in self.steps:
            own = query[:, asking]
            nothing = own.new_zeros((len(own), 2 * step.heads.kv_heads, dim))
            rows = torch.cat((own, nothing), dim=1).flatten(1)
            taken = None if sinks is None else sinks[asking]
            answer = step.attend(layer, rows, turned=turned, sinks=taken)
            out[:, asking] = answer.view(len(qkv), -1, dim)
        return out.flatten(1)


def _of_heads(arena: Arena, heads: torch.Tensor) -> Arena:
    parts = arena.keys, arena.values, arena.key_scales, arena.value_scales
    keys, values, *scales = (None if part is None else part[:, :, heads] for part in parts)
    assert keys is not None and values is not None
    return Arena(keys, values, *scales)
