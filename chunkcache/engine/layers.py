"""Running rows through some of a model's layers: transformers' own layers, the slow twin.

`packed.py` has the fast one, for layers it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from chunkcache.engine.attention import StepRows


class LayerRunner(Protocol):
    """Takes rows from one layer to another."""

    def run(self, first: int, end: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """Hidden states `[rows, width]` through layers `first` to `end`; writes K and V."""
        ...

    def store(self, layer: int, hidden: torch.Tensor, rows: StepRows) -> None:
        """Write K and V of one layer, and show its rows to nobody: `run` does for those it gets."""
        ...

    def logits(self, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """fp32 next-token logits `[n, vocab]` of hidden states behind the last layer."""
        ...


class ModuleLayers:
    """The model's own modules, stepped one at a time with an identity rotary."""

    def __init__(self, hf: PreTrainedModel, head_dim: int) -> None:
        self._hf: Any = hf
        self._head_dim = head_dim

    def run(self, first: int, end: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        hidden = hidden[None]
        one = hidden.new_ones((1, 1, 1)).expand(1, hidden.shape[1], self._head_dim)
        zero = one - 1
        for layer in self._hf.model.layers[first:end]:
            hidden = layer(hidden, position_embeddings=(one, zero), chunkcache_rows=rows)
            if isinstance(hidden, tuple):
                hidden = hidden[0]
        return hidden[0]

    def store(self, layer: int, hidden: torch.Tensor, rows: StepRows) -> None:
        """See `LayerRunner`. Costs the whole layer: a module makes K and V on its way."""
        self.run(layer, layer + 1, hidden, rows.unwatched())

    def logits(self, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        found: torch.Tensor = self._hf.lm_head(self._hf.model.norm(hidden)).float()
        return found
