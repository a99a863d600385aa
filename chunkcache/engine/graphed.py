"""Few rows on a GPU: what lies between two attentions of packed layers is one CUDA graph.

The products and norms of a decode step are many small launches that cost the host more than the
device. Nothing between a layer's attention and the next layer's queries, keys and values depends on
what the rows see, so these pieces are captured once for each bucket of row counts, over buffers
that stay where they are, and replayed; attention is launched between them. Rows that fill a bucket
up run through the products as zeros. They write nothing, attend to nothing, and are read by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.engine.attention import StepRows

    Piece = Callable[[], None]
    Capture = Callable[[Piece], Piece]

BUCKETS = (1, 2, 4, 8, 16, 32)  # rows

log = structlog.get_logger(__name__)


class Between(Protocol):
    """What layers do beside attention; row by row."""

    qkv_width: int
    attended_width: int

    def enter(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values `[rows, qkv_width]` of hidden states `[rows, width]`."""
        ...

    def attend(self, layer: int, qkv: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """`[rows, attended_width]`."""
        ...

    def leave(self, layer: int, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Hidden states behind the layer."""
        ...


class CudaCapture:
    """Makes a piece of work, which reads and writes tensors that stay, one CUDA graph.

    One that cannot be captured runs as it is, with a warning.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # pieces run one after the other: it is shared
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, piece: Piece) -> Piece:
        """What does it again. Cost: the piece is run once before, so that libraries are ready."""
        self._stream.wait_stream(torch.cuda.current_stream())
        graph, replays = torch.cuda.CUDAGraph(), True
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
                replays = False
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph.replay if replays else piece


@dataclass(slots=True, eq=False)
class _Bucket:
    """Buffers for so many rows, and what has been captured over them."""

    hidden: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    entering: dict[int, Piece] = field(default_factory=dict)  # by layer
    leaving: dict[int, Piece] = field(default_factory=dict)


class GraphedLayers:
    """Runs few rows through packed layers, from buckets of captured pieces.

    Args:
        between: what the layers do.
        num_layers: how many there are.
        capture: `CudaCapture()`, or on a CPU anything that runs a piece again.
    """

    def __init__(self, between: Between, num_layers: int, capture: Capture) -> None:
        self._between = between
        self._num_layers = num_layers
        self._capture = capture
        self._buckets: dict[int, _Bucket] = {}

    def run(self, first: int, end: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """Hidden states `[rows, width]` through layers `first` to `end`; see `LayerRunner`.

        At most `BUCKETS[-1]` rows, which nobody observes.
        """
        count = len(hidden)
        bucket = self._bucket(count, hidden)
        bucket.hidden[:count] = hidden
        bucket.hidden[count:] = 0.0
        bucket.attended[count:] = 0.0
        self._entering(bucket, first)()
        for layer in range(first, end):
            rows.wait_for(layer)
            bucket.attended[:count] = self._between.attend(layer, bucket.qkv[:count], rows)
            self._leaving(bucket, layer)()
        return bucket.hidden[:count].clone()

    def _bucket(self, count: int, hidden: torch.Tensor) -> _Bucket:
        size = next(size for size in BUCKETS if size >= count)
        if size not in self._buckets:
            between = self._between
            self._buckets[size] = _Bucket(
                hidden.new_zeros((size, hidden.shape[1])),
                hidden.new_zeros((size, between.qkv_width)),
                hidden.new_zeros((size, between.attended_width)),
            )
        return self._buckets[size]

    def _entering(self, bucket: _Bucket, layer: int) -> Piece:
        """From hidden states to a layer's queries, keys and values."""

        def piece() -> None:
            bucket.qkv.copy_(self._between.enter(layer, bucket.hidden))

        return self._captured(bucket, bucket.entering, layer, piece)

    def _leaving(self, bucket: _Bucket, layer: int) -> Piece:
        """From what a layer's rows have attended to, to the next layer's attention."""

        def piece() -> None:
            bucket.hidden.copy_(self._between.leave(layer, bucket.hidden, bucket.attended))
            if layer + 1 < self._num_layers:
                bucket.qkv.copy_(self._between.enter(layer + 1, bucket.hidden))

        return self._captured(bucket, bucket.leaving, layer, piece)

    def _captured(
        self, bucket: _Bucket, known: dict[int, Piece], layer: int, piece: Piece
    ) -> Piece:
        if layer not in known:
            hidden = bucket.hidden.clone()  # capturing runs the piece on what lies there
            known[layer] = self._capture(piece)
            bucket.hidden.copy_(hidden)
        return known[layer]
