"""What a model's layers say to their attention function, and how they are called one at a time.

Whatever a layer attends with (scale, window, soft-cap, sinks) it hands to the function registered
for attention. A listener stands there: the engine's rows while they run (`attention.py`), or a
`Recorder` that only writes down what it hears, once, when a model is loaded.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

ATTENTION_NAME = "chunkcache_rows"


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """One call of the attention function: `[heads, rows, dim]` before anything is turned by us."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class Listener(Protocol):
    """Stands where a layer attends."""

    def attend(self, heard: Heard) -> torch.Tensor:
        """Attention of the rows, `[rows, heads, value dim]`."""
        ...


_LISTENER: ContextVar[Listener] = ContextVar("chunkcache_listener")


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within, and in this thread, layers attend through the listener."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def attention_function(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with transformers; `query` is `[1, Hq, rows, D]`.

    Returns `[1, rows, Hq, Dv]`, as the interface asks. `attention_mask` and `dropout` are unused:
    what is seen follows from positions, and serving never drops.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    heard = Heard(query[0], key[0], value[0], scale, sliding_window or None, softcap or None, s_aux)
    return _LISTENER.get().attend(heard)[None], None


def number_type_of(module: Any) -> torch.Tensor:
    """A parameter of the type, and on the device, that a module computes with; no packed one."""
    wide = (p for p in module.parameters() if p.is_floating_point() and p.itemsize > 1)
    return next(wide)  # type: ignore[no-any-return]


@dataclass(slots=True, eq=False)
class Recorder:
    """Writes down what layers say and answers with zeros."""

    heard: list[Heard] = field(default_factory=list)

    def attend(self, heard: Heard) -> torch.Tensor:
        """See `Listener`."""
        self.heard.append(heard)
        heads, rows, _ = heard.query.shape
        return heard.value.new_zeros((rows, heads, heard.value.shape[-1]))


class _Standing:
    """In the place of a cache, for layers that ask one how far along their rows are."""

    def __init__(self, positions: torch.Tensor) -> None:
        self._positions = positions

    def get_seq_length(self, *_: Any) -> torch.Tensor:
        """What such layers add the row's number to: its position less that number."""
        positions = self._positions
        return positions - positions.new_ones(len(positions)).cumsum(0) + 1

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Nothing is kept here: pages are the engine's."""
        return key, value


def own_input_width(layer: Any) -> int:
    """Of the input that a layer is given by itself, beside its rows' hidden states; 0: none."""
    width = int(getattr(layer, "hidden_size_per_layer_input", 0) or 0)
    if not width or "per_layer_input" not in inspect.signature(layer.forward).parameters:
        return 0
    return width


def _nothing_shared(layer: Any, hidden: torch.Tensor) -> dict[str, Any]:
    attention = layer.self_attn
    if not getattr(attention, "is_kv_shared_layer", False):
        return {}
    nothing = hidden.new_zeros((1, 1, len(hidden), attention.head_dim))
    return {attention.layer_type: (nothing, nothing)}


def run_layer(
    layer: Any,
    hidden: torch.Tensor,
    embeddings: Any,
    positions: torch.Tensor,
    own: torch.Tensor | None = None,
    shared: dict[str, Any] | None = None,
) -> torch.Tensor:
    """One layer over `hidden` `[rows, width]` with these rotary embeddings; `positions` int64.

    `own` and `shared` as `row_state.Beside` has them; without them zeros, where a layer wants them.
    """
    told: dict[str, Any] = {
        "position_embeddings": embeddings, "position_ids": positions[None],
        "attention_mask": None, "use_cache": False,
    }  # fmt: skip
    takes = inspect.signature(layer.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        told = {name: value for name, value in told.items() if name in takes}
    if own is None and (width := own_input_width(layer)):
        own = hidden.new_zeros((len(hidden), width))
    if own is not None:
        told["per_layer_input"] = own[None]
    if "shared_kv_states" in takes:  # some layers leave K and V there, for others
        told["shared_kv_states"] = _nothing_shared(layer, hidden) if shared is None else shared
    if getattr(getattr(layer, "self_attn", None), "attn_temperature_tuning", False):
        # transformers before 5.24 calls it by its older name
        name = "past_key_values" if "past_key_values" in takes else "cache"
        told[name] = _Standing(positions)
    out = layer(hidden[None], **told)
    return (out[0] if isinstance(out, tuple) else out)[0]  # type: ignore[no-any-return]
