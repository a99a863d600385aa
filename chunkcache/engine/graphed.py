"""Few rows on a GPU: their way through packed layers, attention and all, is one CUDA graph.

The products, norms and launches of a decode step cost the host more than the device. They are
captured once for each bucket of row counts, over buffers that stay where they are, and replayed.
What differs from step to step, what rows see and where they are written, lies in arrays that stay
too (`triton_fixed.py`): a step is sent there, then the graph runs. Rows that fill a bucket up are
written nowhere, attend to nothing, and are read by nobody.

Twin: the same layers, operation by operation (`PackedLayers.run`), over a step bound anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog
import torch

if TYPE_CHECKING:
    from chunkcache.engine.attention import StepRows
    from chunkcache_kernels.triton_fixed import FixedStep, Room

Piece = Callable[[], None]
Capture = Callable[[Piece], Piece]
Through = Callable[[int, torch.Tensor, "StepRows"], torch.Tensor]
"""Hidden states behind a layer, of its number, those before it and the rows."""

BUCKETS = (1, 2, 4, 8, 16, 32)  # rows

log = structlog.get_logger(__name__)


class CudaCapture:
    """Makes a piece of work, which reads and writes tensors that stay, one CUDA graph.

    One that cannot be captured runs as it is, with a warning, and so do all that come later: torch
    may still hold the failed capture for one that goes on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()  # pieces run one after the other: it is shared
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # a pool ends with the last graph in it, and torch captures nothing into one that has ended
        self._first: torch.cuda.CUDAGraph | None = None
        self._captures = True

    def __call__(self, piece: Piece) -> Piece:
        """What does it again. Cost: the piece is run once before, so that libraries are ready."""
        if not self._captures:
            return piece
        engines = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(engines)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            piece()
            try:
                # loader threads copy meanwhile, which is no fault of the capture
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    piece()
                finally:
                    graph.capture_end()
            except RuntimeError as reason:
                log.warning("decode_not_captured", reason=str(reason))
                self._captures = False
        engines.wait_stream(self._stream)
        self._first = self._first or graph
        return graph.replay if self._captures else piece


@dataclass(slots=True, eq=False)
class Bucket:
    """Buffers for steps of so many rows, and what has been captured over them."""

    hidden: torch.Tensor
    step: FixedStep
    pieces: dict[tuple[int, int], Piece] = field(default_factory=dict)  # by first and last layer


class GraphedLayers:
    """Runs few rows through layers, from captured pieces that lie with the pages they read.

    Args:
        through: what a layer does, of its number, hidden states and rows.
        capture: `CudaCapture()`, or on a CPU anything that runs a piece again.
    """

    def __init__(self, through: Through, capture: Capture) -> None:
        self._through = through
        self._capture = capture

    def run(
        self, first: int, end: int, hidden: torch.Tensor, rows: StepRows
    ) -> torch.Tensor | None:
        """Hidden states `[rows, width]` through layers `first` to `end`; see `LayerRunner`.

        None, and nothing done, of what is not captured: many rows, or many of one sequence; rows
        that are observed; layers that are still coming up; pages that Triton's kernels do not read.
        """
        heads, count = rows.facts.kinds[0].heads, len(hidden)
        if count > BUCKETS[-1] or rows.is_watched or not rows.pool.runs_triton(heads):
            return None
        if rows.wait_for(first) < end:
            return None
        from chunkcache_kernels.triton_fixed import Room, plan_if_fixed

        made = plan_if_fixed(rows.layout, rows.pool.arenas, heads)
        if made is None:
            return None
        size = next(size for size in BUCKETS if size >= count)
        bucket = self._bucket(Room.of(made, size, heads.heads // heads.kv_heads), hidden, rows)
        bucket.step.load(made, rows.layout, rows.slots)
        piece = self._piece(bucket, first, end, rows)
        bucket.hidden[:count] = hidden
        bucket.hidden[count:] = 0.0
        piece()
        return bucket.hidden[:count].clone()

    def _bucket(self, room: Room, hidden: torch.Tensor, rows: StepRows) -> Bucket:
        """The one for as many rows and queries, made anew where it is too small."""
        from chunkcache_kernels.triton_fixed import FixedStep

        captured, key = rows.pool.captured, (room.rows, room.queries)
        known, (rotary,) = captured.get(key), rows.rotaries
        if known is not None:
            if known.step.room.holds(room) and known.step.step.rotary is rotary:
                return known
            room = room.and_that_of(known.step.room)
            if hidden.device.type == "cuda":
                torch.cuda.current_stream(hidden.device).synchronize()  # its graphs may be running
        step = FixedStep.empty(room, rows.pool.arenas, rows.facts.kinds[0].heads, rotary)
        captured[key] = Bucket(hidden.new_zeros((room.rows, hidden.shape[1])), step)
        return captured[key]

    def _piece(self, bucket: Bucket, first: int, end: int, rows: StepRows) -> Piece:
        """Layers `first` to `end` over the bucket's buffers."""
        if (first, end) in bucket.pieces:
            return bucket.pieces[first, end]
        fixed = replace(rows, groups=(), sequences=(), bound_kernels=[bucket.step])

        def piece() -> None:
            bucket.step.find_bounds()
            state = bucket.hidden
            for layer in range(first, end):
                state = self._through(layer, state, fixed)
            bucket.hidden.copy_(state)

        bucket.pieces[first, end] = self._capture(piece)
        return bucket.pieces[first, end]
