"""Our attention function, called by transformers' own layers through `AttentionInterface`.

The layers get an identity rotary (cos = 1, sin = 0), so q and k arrive here before RoPE and after
any q/k-norm. This function rotates them with the model's own angles in fp32, writes K and V of the
rows to their slots, lets observers look, and attends. The one rule, for every kind of row: a row
sees the keys of its own sequence at positions ≤ its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

import chunkcache_kernels as kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache_kernels.plan import RowPlan

ATTENTION_NAME = "chunkcache_rows"


class Logits(Enum):
    """Of which rows the next-token logits are wanted."""

    NONE = auto()
    LAST = auto()
    ALL = auto()


@dataclass(slots=True)
class KVPool:
    """Device KV of all running sequences: per layer K (after RoPE) and V, `[slots, heads, dim]`."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]


@dataclass(slots=True)
class SequenceRows:
    """The rows of one sequence in one step, and the layers they run through.

    `positions` int64 [R], increasing; `slots` int64 [context]: slot of every position below
    `context`, the rows' own positions included. Keys at positions that no row or placement has
    written must not exist below the largest row position.

    Rows start at the embeddings, or at `first_layer` from their `hidden` states, `[R, width]`. They
    end behind the last layer or, without logits, before `end_layer`. With `keep` their hidden
    states are kept where they enter its layer. Of two groups of rows of one sequence in one step,
    the one with the larger positions comes second.

    The error of an observer is left in `fault` for whoever runs the step: the other sequences' rows
    have nothing to do with it.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    observer: RowObserver | None = None
    logits: Logits = Logits.LAST
    first_layer: int = 0
    end_layer: int | None = None
    hidden: torch.Tensor | None = None
    keep: KeptRows | None = None
    fault: Exception | None = None

    def __len__(self) -> int:
        return self.positions.shape[0]


@dataclass(slots=True, eq=False)
class KeptRows:
    """Rows half-way through the model, which go on from `layer` later instead of starting again.

    `positions` int64 [R], increasing, of the rows that are run; `parts` are their hidden states as
    they enter the layer, in the same order, `[n, width]` for each step they ran in.
    """

    layer: int
    positions: np.ndarray
    parts: list[torch.Tensor] = field(default_factory=list)

    def states(self, positions: np.ndarray) -> torch.Tensor:
        """Hidden states of some of the rows, `[len(positions), width]`.

        Raises:
            ValueError: one of the positions was not kept.
        """
        index = np.searchsorted(self.positions, positions)
        found = index < len(self.positions)
        if not found.all() or (self.positions[index] != positions).any():
            raise ValueError(f"rows {positions} are not all among those kept")
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]  # once, not for every step that asks
        states = self.parts[0]
        return states[torch.from_numpy(index).to(states.device)]


@dataclass(frozen=True, slots=True, eq=False)
class LayerView:
    """What an observer sees of one sequence's rows in one layer."""

    layer: int
    rows: SequenceRows
    plan: RowPlan
    query: torch.Tensor  # [R, Hq, D] after RoPE
    key_before_rope: torch.Tensor  # [R, Hkv, D]
    value: torch.Tensor  # [R, Hkv, D]
    pool_keys: torch.Tensor  # [slots, Hkv, D]
    pool_values: torch.Tensor
    cos: torch.Tensor  # fp32 [R, D]
    sin: torch.Tensor
    scale: float

    def show(self, look: Callable[[LayerView], None]) -> None:
        """Let the observer look with one of its methods; after an error it looks no more."""
        if self.rows.fault is not None:
            return
        try:
            look(self)
        except Exception as error:
            self.rows.fault = error


class RowObserver(Protocol):
    """Looks at rows layer by layer: captures KV, scores tokens, corrects neighbours."""

    def before_write(self, view: LayerView) -> None:
        """The pool still holds what was at the rows' slots before."""
        ...

    def after_write(self, view: LayerView) -> None:
        """The pool holds the rows' new K and V; attention comes next."""
        ...


@dataclass(slots=True)
class RowBatch:
    """All rows of one forward pass, and the angles at their positions."""

    sequences: list[SequenceRows]
    plans: list[RowPlan]  # of each sequence: made once, used by every layer
    pool: KVPool
    cos: torch.Tensor  # fp32 [rows, D]
    sin: torch.Tensor


def rows_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    chunkcache_batch: RowBatch,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with transformers; `query` is `[1, Hq, rows, D]` before RoPE.

    Returns `[1, rows, Hq, D]`, as the interface asks. `attention_mask` and `dropout` are unused:
    visibility follows from positions, and serving never drops.
    """
    layer: int = module.layer_idx
    batch = chunkcache_batch
    keys, values = batch.pool.keys[layer], batch.pool.values[layer]
    query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))
    rotated = query
    if getattr(module, "use_rope", True):  # SmolLM3 has layers without positions
        cos, sin = batch.cos, batch.sin
        rotated = kernels.rotate(query, cos, sin)
    else:
        cos, sin = (
            batch.cos.new_ones(()).expand_as(batch.cos),
            batch.sin.new_zeros(()).expand_as(batch.sin),
        )
    out = query.new_empty(query.shape)
    start = 0
    for rows, plan in zip(batch.sequences, batch.plans, strict=True):
        part = slice(start, start + len(rows))
        start = part.stop
        view = None
        if rows.observer is not None:
            view = LayerView(
                layer, rows, plan, rotated[part], key[part], value[part],
                keys, values, cos[part], sin[part], scaling,
            )  # fmt: skip
            view.show(rows.observer.before_write)
        kernels.place_kv(key[part], value[part], cos[part], sin[part], keys, values, plan.write)
        if rows.observer is not None and view is not None:
            view.show(rows.observer.after_write)
        out[part] = kernels.paged_rows_attention(
            rotated[part], keys, values, rows.slots, rows.positions, scaling, plan=plan
        )
    return out.unsqueeze(0), None
