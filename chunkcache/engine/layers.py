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
        self._ends = _Ends(hf)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """See `LayerRunner`."""
        return self._ends.embed(token_ids)

    def run(self, first: int, end: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        positions = np.concatenate([group.positions for group in rows.groups])
        where = index_of(positions, hidden.device)
        for index in range(first, end):
            rows.wait_for(index)
            nothing = self._facts.embeddings[index].identity(hidden)
            with listening(HeardRows(rows, index, self._orders[index])):
                hidden = run_layer(self._layers[index], hidden, nothing, where)
        return hidden

    def store(self, layer: int, hidden: torch.Tensor, rows: StepRows) -> None:
        """See `LayerRunner`. Costs the whole layer: a module makes K and V on its way."""
        self.run(layer, layer + 1, hidden, rows.unwatched())

    def logits(self, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        return self._ends.logits(hidden)


class _Ends:
    """What a model does before its first layer and behind its last: its own forward pass, over a
    shallow copy that has one layer, which lets states out and in.

    So factors of embeddings and logits, norms and soft-caps need no list of families.
    """

    def __init__(self, hf: PreTrainedModel) -> None:
        self._gap = _Gap(layers_of(hf)[0])
        self._network: Any = _shallow(hf)
        self._decoder: Any = self._network
        for name in _path(hf, decoder_of(hf)):
            inner = _shallow(getattr(self._decoder, name))
            setattr(self._decoder, name, inner)
            self._decoder = inner
        self._decoder.layers = torch.nn.ModuleList([self._gap])

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """What the first layer is given, `[rows, width]`."""
        self._gap.given = None
        with listening(Recorder()):
            self._decoder(token_ids[None], use_cache=False)
        assert self._gap.taken is not None
        return self._gap.taken[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[n, vocab]` of states `[n, width]`."""
        self._gap.given = hidden[None]
        ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
        with listening(Recorder()):
            found: torch.Tensor = self._network(ids, use_cache=False).logits[0].float()
        self._gap.given = None
        return found


class _Gap(torch.nn.Module):
    """In the place of all layers: keeps what it is given, and gives what it is told to."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():  # models ask layers for their kind
            if isinstance(value, bool | int | float | str):
                setattr(self, name, value)
        self.given: torch.Tensor | None = None
        self.taken: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.taken = hidden
        return hidden if self.given is None else self.given


def _path(network: torch.nn.Module, part: torch.nn.Module) -> list[str]:
    """The names that lead from a module to a part of it."""
    return next(name.split(".") for name, module in network.named_modules() if module is part)


def _shallow(module: Any) -> Any:
    """The same module with a list of parts of its own."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied
