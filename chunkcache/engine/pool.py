"""Device KV of one engine: two arenas of pages, and the kernels that read and write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog
import torch

from chunkcache_kernels import PortableStep, PortableWeights, lay_out, portable
from chunkcache_kernels.compiled import CompiledStep, CompiledWeights, Team, place_chunk
from chunkcache_kernels.compiler import NoCompiler
from chunkcache_kernels.sending import runs_triton
from chunkcache_kernels.structs import TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.graphed import Bucket
    from chunkcache_kernels import Arena, Heads, Layout, Rotary, SequenceLayout

log = structlog.get_logger(__name__)


class StepKernels(Protocol):
    """A step's rows bound to the pages they look at; `PortableStep` says what the verbs do."""

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
        """Norm, rotate and write the rows' K and V."""
        ...

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of the rows."""
        ...


class RowWeights(Protocol):
    """Rows of one sequence bound to what they see."""

    def weights(self, layer: int, query: torch.Tensor, *, turned: bool = True) -> torch.Tensor:
        """fp32 `[R, last position + 1]`: attention of queries `[R, heads, dim]` before RoPE to
        every position, mean over heads.
        """
        ...

    def mass(
        self, layer: int, query: torch.Tensor, edges: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """fp32 `[R, E + 1]`: the same, summed between positions `edges` `[E]`, without a matrix
        where the kernels know how.
        """
        ...

    def received(
        self, layer: int, query: torch.Tensor, votes: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """fp32 `[last position + 1]`: the same, summed over rows, each times its vote, `[R]`."""
        ...


@dataclass(slots=True, eq=False)
class KVPool:
    """Pages of running requests (`own`) and of chunks, and who computes on them.

    `team` are the threads of the compiled kernels; without it torch does their work, as it does
    over pages of a type that they do not read.
    """

    own: Arena
    chunks: Arena
    team: Team | None
    # what was captured over these pages, and goes with them: see `GraphedLayers`
    captured: dict[tuple[int, int], Bucket] = field(default_factory=dict)

    @property
    def arenas(self) -> tuple[Arena, Arena]:
        """In the order segments number them."""
        return self.own, self.chunks

    def bind(self, layout: Layout, heads: Heads, rotary: Rotary) -> StepKernels:
        """The kernels for a step's rows."""
        if self._reader is not None:
            return CompiledStep.bind(self._reader, layout, self.arenas, heads, rotary)
        if self.runs_triton(heads):
            from chunkcache_kernels.triton_pages import TritonStep

            return TritonStep.bind(layout, self.arenas, heads, rotary)
        return PortableStep(layout, self.arenas, heads, rotary)

    @property
    def is_fast(self) -> bool:
        """Whether pages are read by kernels made for the device, if there are any."""
        return self.team is None or self._reader is not None

    @property
    def _reader(self) -> Team | None:
        """The team, where its kernels read all pages."""
        reads = all(arena.keys.dtype in TYPES for arena in self.arenas)
        return self.team if reads else None

    def runs_triton(self, heads: Heads) -> bool:
        """Whether the pages lie where Triton's kernels read them, in types they know."""
        if not runs_triton(self.own.keys.device):
            return False
        from chunkcache_kernels.triton_pages import MAX_DIM, PAGE_TYPES

        known = all(arena.keys.dtype in PAGE_TYPES for arena in self.arenas)
        return known and heads.dim <= MAX_DIM

    def bind_weights(self, sequence: SequenceLayout, heads: Heads, rotary: Rotary) -> RowWeights:
        """What tells where the rows of one sequence look."""
        team, on_triton = self._reader, self.runs_triton(heads)
        if team is None and not on_triton:
            return PortableWeights(sequence, self.arenas, heads, rotary)
        group = heads.heads // heads.kv_heads
        layout = lay_out([sequence], page_tokens=self.own.page_tokens, group=group)
        if team is not None:
            return CompiledWeights.bind(team, layout, self.arenas, heads, rotary)
        from chunkcache_kernels.triton_weights import TritonWeights

        return TritonWeights.bind(layout, self.arenas, heads, rotary)


def open_team(model: DecoderModel, page_tokens: int) -> Team | None:
    """Threads for the compiled kernels, as many as torch uses; None where they cannot be had."""
    if model.device.type != "cpu":
        return None
    try:
        return Team(model.kernel_cache, page_tokens, torch.get_num_threads())
    except NoCompiler as error:
        log.warning("kernels_not_compiled", reason=str(error))
        return None


def placing(arena: Arena, team: Team | None) -> Callable[..., None]:
    """What writes layers of chunks to pages where these lie; `portable.place_chunk` says how."""
    if team is not None and arena.keys.dtype in TYPES:
        return partial(place_chunk, team)
    if not runs_triton(arena.keys.device):
        return portable.place_chunk
    from chunkcache_kernels import triton_records

    return triton_records.place_chunk
