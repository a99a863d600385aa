"""Rows of a step, and their attention over pages: what the layers of a model call.

Rows are written to their slots first, then all of them attend. The one rule, for every kind of row:
a row sees the keys of its own sequence at positions ≤ its own, in the layer's window, that no other
row has replaced. Transformers' own layers come here through `listening.py`: they get an identity
rotary (cos = 1, sin = 0), so that q and k arrive before RoPE and after any q/k-norm
(docs/decisions/0003).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from chunkcache_kernels import SequenceLayout
from chunkcache_kernels.portable import split_qkv
from chunkcache_kernels.sending import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.engine.facts import LayerFacts, ModelFacts
    from chunkcache.engine.listening import Heard
    from chunkcache.engine.pool import KVPool, RowWeights, StepKernels
    from chunkcache.engine.sequence_kv import SequenceKV
    from chunkcache_kernels import Heads, Layout, Rotary


class Logits(Enum):
    """Of which rows the next-token logits are wanted."""

    NONE = auto()
    LAST = auto()
    ALL = auto()


@dataclass(slots=True)
class SequenceRows:
    """The rows of one sequence in one step, and the layers they run through.

    `token_ids` `[R]` lie on the host or, where it does not know them yet, on the device;
    `positions` int64 `[R]`, increasing; `slots` int32 `[R]`, where they are written; `kv` says what
    they see. Rows start at the embeddings, or at `first_layer` from their `hidden` states, `[R,
    width]`. They end behind the last layer or, without logits, before `end_layer`. With `keep`
    their hidden states are kept where they enter its layer. Of two groups of rows of one sequence
    in one step, the one with the larger positions comes second.

    A fault of the observer is kept in `fault`: it is no fault of the other sequences' rows.
    """

    token_ids: torch.Tensor
    positions: np.ndarray
    slots: np.ndarray
    kv: SequenceKV
    observer: RowObserver | None = None
    logits: Logits = Logits.LAST
    first_layer: int = 0
    end_layer: int | None = None
    hidden: torch.Tensor | None = None
    keep: KeptRows | None = None
    fault: Exception | None = None

    def __len__(self) -> int:
        return len(self.positions)


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
        return rows_of(self.parts[0], index)


@dataclass(frozen=True, slots=True, eq=False)
class LayerView:
    """What an observer sees of one sequence's rows in one layer, once they are written."""

    layer: int
    rows: SequenceRows
    sequence: SequenceLayout
    query: torch.Tensor  # [R, Hq, D] before RoPE
    key_before_rope: torch.Tensor  # [R, Hkv, D]
    value: torch.Tensor  # [R, Hkv, D]
    pool: KVPool
    heads: Heads
    rotary: Rotary
    turned: bool  # whether the layer has positions
    bound: dict[int, RowWeights]  # by the first of the rows; kept from layer to layer

    def mass(self, first: int, edges: torch.Tensor) -> torch.Tensor:
        """fp32 `[n, E + 1]`: attention of the rows from `first` on, mean over query heads, summed
        between positions `edges`, int32 `[E]`, increasing, on the device. Over keys alone: a row
        sums to 1 in a layer with sinks, too.
        """
        bound = self._bound(first)
        return bound.mass(self.layer, self.query[first:], edges, turned=self.turned)

    def received(self, first: int, votes: torch.Tensor) -> torch.Tensor:
        """fp32 `[last position + 1]`: the attention that every position gets from the rows from
        `first` on, mean over query heads, each row's times its vote, fp32 `[n]`. Over keys alone.
        """
        bound = self._bound(first)
        return bound.received(self.layer, self.query[first:], votes, turned=self.turned)

    def _bound(self, first: int) -> RowWeights:
        if first not in self.bound:
            some = SequenceLayout(self.sequence.positions[first:], self.sequence.segments)
            self.bound[first] = self.pool.bind_weights(some, self.heads, self.rotary)
        return self.bound[first]


class RowObserver(Protocol):
    """Looks at rows layer by layer: captures KV, scores tokens."""

    def look(self, view: LayerView) -> None:
        """The pages hold the rows' new K and V; attention comes next."""
        ...


@dataclass(slots=True, eq=False)
class StepRows:
    """Rows that run through some layers together, and how they write and attend."""

    groups: Sequence[SequenceRows]
    sequences: Sequence[SequenceLayout]
    layout: Layout
    slots: np.ndarray  # int32 [rows]
    pool: KVPool
    facts: ModelFacts
    rotaries: Sequence[Rotary]  # of every kind of layer
    bound_kernels: list[StepKernels] = field(default_factory=list)  # see `kernels`
    # by group and kind of layer
    bound: dict[tuple[int, int], dict[int, RowWeights]] = field(default_factory=dict)

    @property
    def kernels(self) -> Sequence[StepKernels]:
        """Of every kind of layer; bound when they are first asked for."""
        if not self.bound_kernels:
            self.bound_kernels += [
                self.pool.bind(self.layout, kind.heads, rotary)
                for kind, rotary in zip(self.facts.kinds, self.rotaries, strict=True)
            ]
        return self.bound_kernels

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at rows, layer by layer."""
        return any(group.observer is not None for group in self.groups)

    def wait_for(self, layer: int) -> int:
        """Wait until a layer of every chunk that the rows look at is there. Returns: up to which
        layer all of them are.

        Raises:
            NotArrived: it will not come, or not soon.
        """
        return min(group.kv.wait_for(layer, int(group.positions[-1])) for group in self.groups)

    def unwatched(self) -> StepRows:
        """The same rows, shown to nobody."""
        return replace(self, groups=[replace(group, observer=None) for group in self.groups])

    def write(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        query_norm: torch.Tensor | None = None,
        key_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """Write the rows' K and V of a layer; `qkv` as in `attend`."""
        facts = self.facts.layers[layer]
        self.kernels[facts.kind].write(
            layer, qkv, self.slots, turned=facts.turned,
            query_norm=query_norm, key_norm=key_norm, eps=eps,
        )  # fmt: skip

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        query_norm: torch.Tensor | None = None,
        key_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> torch.Tensor:
        """Write the rows' K and V, let observers look, attend: `[rows, heads · dim]`.

        `qkv` `[rows, (heads + 2 kv_heads) · dim]` before RoPE; normed in place where norms are
        given.
        """
        self.write(layer, qkv, query_norm=query_norm, key_norm=key_norm, eps=eps)
        facts = self.facts.layers[layer]
        if self.is_watched:
            self._show(layer, qkv, facts)
        sinks = self.facts.sinks[layer]
        return self.kernels[facts.kind].attend(layer, qkv, turned=facts.turned, sinks=sinks)

    def _show(self, layer: int, qkv: torch.Tensor, facts: LayerFacts) -> None:
        heads = self.facts.kinds[facts.kind].heads
        query, key, value = split_qkv(qkv, heads)
        start = 0
        for number, (group, sequence) in enumerate(zip(self.groups, self.sequences, strict=True)):
            part = slice(start, start + len(group))
            start = part.stop
            if group.observer is None or group.fault is not None:
                continue
            view = LayerView(
                layer, group, sequence, query[part], key[part], value[part],
                self.pool, heads, self.rotaries[facts.kind], facts.turned,
                self.bound.setdefault((number, facts.kind), {}),
            )  # fmt: skip
            try:
                group.observer.look(view)
            except Exception as fault:
                group.fault = fault


@dataclass(slots=True, eq=False)
class HeardRows:
    """Rows of a step in one of transformers' own layers."""

    rows: StepRows
    layer: int
    order: torch.Tensor | None  # of the channels of queries and keys

    def attend(self, heard: Heard) -> torch.Tensor:
        """`[rows, heads, value dim]`; see `Listener`."""
        facts = self.rows.facts.layers[self.layer]
        assert heard.scale == facts.scale, "not the layer that was read"
        query, key, value = heard.query, heard.key, heard.value
        if self.order is not None:
            query, key = query[..., self.order], key[..., self.order]
        heads = self.rows.facts.kinds[facts.kind].heads
        if len(key) < heads.kv_heads:
            key, value = (t.repeat_interleave(heads.kv_heads // len(key), 0) for t in (key, value))
        query, key, value = (
            torch.nn.functional.pad(t, (0, heads.dim - t.shape[-1]))
            if t.shape[-1] < heads.dim
            else t
            for t in (query, key, value)
        )
        qkv = torch.cat([t.transpose(0, 1).flatten(1) for t in (query, key, value)], dim=1)
        out = self.rows.attend(self.layer, qkv)
        return out.view(len(out), len(query), -1)[..., : facts.value_dim]
