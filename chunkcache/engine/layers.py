"""Running rows through some of a model's layers: transformers' own layers, the slow twin.

`packed.py` has the fast one, for layers it knows.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from chunkcache.engine.attention import HeardRows
from chunkcache.engine.facts import decoder_of, layers_of
from chunkcache.engine.listening import Recorder, listening, run_layer
from chunkcache.engine.row_state import RowState
from chunkcache_kernels.sending import index_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from chunkcache.engine.attention import StepRows
    from chunkcache.engine.facts import ModelFacts


class LayerRunner(Protocol):
    """Takes rows from one layer to another."""

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Hidden states `[rows, width]` of tokens `[rows]`, as the first layer takes them."""
        ...

    def run(self, first: int, end: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """Hidden states `[rows, width]` through layers `first` to `end`; writes K and V.

        Waits for each layer of the chunks that the rows look at (`StepRows.wait_for`).
        """
        ...

    def store(self, layer: int, hidden: torch.Tensor, rows: StepRows) -> None:
        """Write K and V of one layer, and show its rows to nobody: `run` does for those it gets."""
        ...

    def logits(self, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """fp32 next-token logits `[n, vocab]` of hidden states behind the last layer."""
        ...


class ModuleLayers:
    """The model's own modules, stepped one at a time with an identity rotary."""

    def __init__(self, hf: PreTrainedModel, facts: ModelFacts) -> None:
        self._layers = layers_of(hf)
        self._facts = facts
        device = next(hf.parameters()).device
        self._orders = [
            None if of.order is None else torch.tensor(of.order, device=device)
            for of in facts.layers
        ]
        self._state = RowState(hf)
        self._ends = _Ends(hf, self._state)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """See `LayerRunner`."""
        return self._ends.embed(token_ids)

    def run(self, first: int, end: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        positions = np.concatenate([group.positions for group in rows.groups])
        where = index_of(positions, hidden.device)
        beside, hidden = self._state.beside(hidden), self._state.hidden(hidden)
        for index in range(first, end):
            rows.wait_for(index)
            layer, nothing = self._layers[index], self._facts.embeddings[index].identity(hidden)
            with listening(HeardRows(rows, index, self._orders[index])):
                hidden = run_layer(layer, hidden, nothing, where, beside.of(index), beside.shared)
        return self._state.leaving(hidden, beside)

    def store(self, layer: int, hidden: torch.Tensor, rows: StepRows) -> None:
        """See `LayerRunner`. Costs the whole layer: a module makes K and V on its way."""
        self.run(layer, layer + 1, hidden, rows.unwatched())

    def logits(self, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        return self._ends.logits(hidden)


class _Ends:
    """What a model does before its first layer and behind its last: its own forward pass, over a
    shallow copy that has gaps for layers, which let states out and in.

    So factors of embeddings and logits, norms and soft-caps need no list of families.
    """

    def __init__(self, hf: PreTrainedModel, state: RowState) -> None:
        self._state = state
        self._gaps = [_Gap(layer) for layer in layers_of(hf)[: state.gaps]]
        self._network: Any = _shallow(hf)
        self._decoder: Any = self._network
        for name in _path(hf, decoder_of(hf)):
            inner = _shallow(getattr(self._decoder, name))
            setattr(self._decoder, name, inner)
            self._decoder = inner
        self._decoder.layers = torch.nn.ModuleList(self._gaps)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The state that rows enter the first layer with, `[rows, width]`."""
        first = self._gaps[0]
        first.given = None
        with listening(Recorder()):
            self._decoder(token_ids[None], use_cache=False)
        assert first.taken is not None
        own = [gap.own[0] for gap in self._gaps if gap.own is not None]
        return self._state.entering(first.taken[0], own)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[n, vocab]` of states `[n, width]`."""
        first = self._gaps[0]
        first.given = self._state.hidden(hidden)[None]
        ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
        with listening(Recorder()):
            found: torch.Tensor = self._network(ids, use_cache=False).logits[0].float()
        first.given = None
        return found


class _Gap(torch.nn.Module):
    """In the place of layers: keeps what it is given, and gives what it is told to, if anything."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():  # models ask layers for their kind
            if isinstance(value, bool | int | float | str):
                setattr(self, name, value)
        self.given: torch.Tensor | None = None
        self.taken: torch.Tensor | None = None
        self.own: torch.Tensor | None = None  # what this layer alone is given

    def forward(self, hidden: torch.Tensor, *more: Any, **told: Any) -> torch.Tensor:
        self.taken = hidden
        own = told.get("per_layer_input", more[0] if more else None)
        self.own = own if torch.is_tensor(own) else None
        return hidden if self.given is None else self.given


def _path(network: torch.nn.Module, part: torch.nn.Module) -> list[str]:
    """The names that lead from a module to a part of it."""
    return next(name.split(".") for name, module in network.named_modules() if module is part)


def _shallow(module: Any) -> Any:
    """The same module with a list of parts of its own."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied
