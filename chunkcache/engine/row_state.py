"""What a row takes from layer to layer: its hidden state, and what some models hand on beside it.

Gemma 4's small models give each layer an input of its own, made of the token, and let later layers
attend to K and V that an earlier one made. Both are columns of a row's state here, behind the
hidden ones: rows may leave half-way and go on later with all that they need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from chunkcache.engine.facts import attention_of, config_of, layers_of
from chunkcache.engine.listening import own_input_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(slots=True, eq=False)
class Beside:
    """What a layer is given beside hidden states.

    `own`: `[rows, layers, width]`, each layer's input; `shared`: K and V `[1, kv_heads, rows, dim]`
    of the layer that makes them, by its type.
    """

    own: torch.Tensor | None = None
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def of(self, layer: int) -> torch.Tensor | None:
        """The input of one layer, `[rows, width]`."""
        return None if self.own is None else self.own[:, layer]


class RowState:
    """Columns of a row's state: hidden, each layer's own input, shared K and V."""

    def __init__(self, hf: PreTrainedModel) -> None:
        layers = layers_of(hf)
        self._hidden = int(config_of(hf).hidden_size)
        self._layers = len(layers)
        self._own = own_input_width(layers[0])
        self._shared: dict[str, tuple[int, int]] = {}  # kv heads and their size, by type of layer
        if any(is_shared(layer) for layer in layers):
            for attention in map(attention_of, layers):
                if getattr(attention, "store_full_length_kv", False):
                    dim = attention.head_dim
                    self._shared[attention.layer_type] = (attention.k_proj.out_features // dim, dim)

    @property
    def gaps(self) -> int:
        """How many of the layers must be stood in for, to hear what they are given."""
        return self._layers if self._own else 1

    def entering(self, hidden: torch.Tensor, own: list[torch.Tensor]) -> torch.Tensor:
        """The state of rows before the first layer, of `[rows, width]` and each layer's input, if
        layers have any.
        """
        parts = [hidden, *(own if self._own else ())]
        numbers = sum(2 * heads * dim for heads, dim in self._shared.values())
        if numbers:
            parts.append(hidden.new_zeros((len(hidden), numbers)))
        return torch.cat(parts, 1) if len(parts) > 1 else hidden

    def hidden(self, state: torch.Tensor) -> torch.Tensor:
        """`[rows, width]`."""
        return state[:, : self._hidden] if self._own or self._shared else state

    def beside(self, state: torch.Tensor) -> Beside:
        """What the layers are given besides; what is shared is made in place by the layers."""
        at = self._hidden
        found = Beside()
        if self._own:
            end = at + self._layers * self._own
            found.own, at = state[:, at:end].view(len(state), self._layers, self._own), end
        for kind, (heads, dim) in self._shared.items():
            pair = []
            for _ in range(2):
                part = state[:, at : at + heads * dim]
                pair.append(part.view(len(state), heads, dim).transpose(0, 1)[None])
                at += heads * dim
            found.shared[kind] = (pair[0], pair[1])
        return found

    def leaving(self, hidden: torch.Tensor, beside: Beside) -> torch.Tensor:
        """The state of rows behind some layers, which were given `beside`."""
        if not self._own and not self._shared:
            return hidden
        parts = [hidden]
        if beside.own is not None:
            parts.append(beside.own.flatten(1))
        for kind in self._shared:
            parts += [t[0].transpose(0, 1).flatten(1) for t in beside.shared[kind]]
        return torch.cat(parts, 1)


def is_shared(layer: Any) -> bool:
    """Whether it attends to K and V that an earlier layer of its type has made."""
    return bool(getattr(attention_of(layer), "is_kv_shared_layer", False))
