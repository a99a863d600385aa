"""Facts of a layer: how it attends, read once from the model, for planner, pages and kernels.

They are what the layer itself tells its attention function (`listening.py`) and what it does with
its angles (`rotation.py`); no list of families says them, and nothing assumes that all layers are
alike. A fact that the kernels do not follow is a reason to refuse the model, in words, before any
row is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from chunkcache.engine.angles import RotaryAngles
from chunkcache.engine.listening import Heard, Recorder, listening
from chunkcache.engine.rotation import (
    Embeddings,
    NotARotation,
    Rotation,
    embeddings_of,
    rotation_of,
)
from chunkcache_kernels import Heads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

_TOKENS = 8  # of the prompt the layers are listened to with


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """How one layer attends.

    `kind`: which of the model's `LayerKind`s; `turned`: its keys have positions (RoPE); `scale`
    multiplies scores; `window`: only so many positions up to its own are seen, None for all;
    `softcap`: scores are bounded by c·tanh(s/c); `block`: only positions of the row's own block of
    so many are seen, None for all; `order`: channels of queries and keys in the kernels' order,
    None as they are; `value_dim`: channels of a value, which are fewer than a key's in latent
    attention, and in layers whose heads are smaller than those of others.
    """

    kind: int
    turned: bool
    scale: float
    value_dim: int
    window: int | None = None
    softcap: float | None = None
    block: int | None = None
    order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerKind:
    """What layers that attend alike share: what the kernels must know, and their angles."""

    heads: Heads
    angles: RotaryAngles


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """Of all layers, in order. `sinks`: fp32 `[heads]` of those that have them; `embeddings`: what
    their modules take, each."""

    layers: tuple[LayerFacts, ...]
    kinds: tuple[LayerKind, ...]
    sinks: tuple[torch.Tensor | None, ...]
    embeddings: tuple[Embeddings, ...]

    @property
    def angles(self) -> list[RotaryAngles | None]:
        """Of every layer; None for those whose keys have no positions."""
        return [self.kinds[f.kind].angles if f.turned else None for f in self.layers]

    @property
    def are_alike(self) -> bool:
        """Whether all layers attend in the same way, but for having positions, and plainly."""
        plain = all(
            facts.order is None and not (facts.window or facts.softcap or facts.block)
            for facts in self.layers
        )
        return plain and len(self.kinds) == 1 and not any(s is not None for s in self.sinks)


class CannotFollow(Exception):
    """What the kernels do not do of the model's attention; the message says it in words."""


@torch.inference_mode()
def facts_of(hf: PreTrainedModel) -> ModelFacts:
    """The facts of every layer of a model.

    A window that no prompt can outgrow (`context_of`) is none. Cost: a pass over 8 tokens, and
    some hundred rows through one layer of each kind.

    Raises:
        CannotFollow: layers do what kernels and records do not follow.
    """
    layers = layers_of(hf)
    heard = _listen(hf, len(layers))
    kinds = _Kinds(_widest(heard))
    config: Any = config_of(hf)
    device = heard[0].key.device
    names: Any = getattr(config, "layer_types", None) or [None] * len(layers)
    embeddings = [_embeddings(hf, name) for name in names]
    rotations = _rotations(hf, layers, embeddings)
    windows = [_window(config, layer, h, name) for layer, h, name in
               zip(layers, heard, names, strict=True)]  # fmt: skip
    found = []
    for of, rotation, window, embedding, name in zip(
        heard, rotations, windows, embeddings, names, strict=True
    ):
        block = _block(config, name)
        kind = kinds.of(of, rotation, window, block, embedding.scale, device)
        found.append(
            LayerFacts(
                kind=kind,
                turned=rotation is not None,
                scale=of.scale,
                value_dim=of.value.shape[-1],
                window=window,
                softcap=of.softcap,
                block=block,
                order=None if rotation is None else rotation.order,
            )
        )
    sinks = tuple(None if h.sinks is None else h.sinks.float().flatten() for h in heard)
    return ModelFacts(tuple(found), kinds.made(), sinks, tuple(embeddings))


def decoder_of(hf: PreTrainedModel) -> Any:
    """The part of a model that holds its layers; of one that sees images, the part that reads."""
    network: Any = hf
    found = network.get_decoder()
    if not hasattr(found, "config"):
        return network.base_model  # some name something else so
    inner = getattr(found, "model", None)  # and some the whole of what reads
    return inner if not hasattr(found, "layers") and hasattr(inner, "layers") else found


def config_of(hf: PreTrainedModel) -> Any:
    """The configuration of that part."""
    return decoder_of(hf).config


def layers_of(hf: PreTrainedModel) -> list[Any]:
    """The model's layers, in order.

    Raises:
        CannotFollow: it has no such list.
    """
    decoder = decoder_of(hf)
    found: Any = getattr(decoder, "layers", None)
    if found is None or len(found) < config_of(hf).num_hidden_layers:
        raise CannotFollow("no list of layers")
    return list(found)[: config_of(hf).num_hidden_layers]


def _listen(hf: PreTrainedModel, count: int) -> list[Heard]:
    recorder, network = Recorder(), hf
    device = next(hf.parameters()).device
    with listening(recorder):
        network(torch.arange(_TOKENS, device=device)[None], use_cache=False)
    if len(recorder.heard) != count:
        raise CannotFollow(
            f"{count} layers, of which {len(recorder.heard)} attend through transformers' interface"
        )
    return recorder.heard


def _widest(heard: list[Heard]) -> Heads:
    """What keys and values of all layers fit into: smaller heads are filled up with zeros, fewer
    ones stand there several times.
    """
    heads = {h.query.shape[0] for h in heard}
    kv_heads, dim = max(h.key.shape[0] for h in heard), max(h.key.shape[-1] for h in heard)
    fits = all(kv_heads % h.key.shape[0] == 0 and h.value.shape[-1] <= dim for h in heard)
    if len(heads) != 1 or not fits:
        raise CannotFollow("layers whose heads are of several shapes")
    return Heads(heads.pop(), kv_heads, dim, 1.0, 0)


def _embeddings(hf: PreTrainedModel, kind: str | None) -> Embeddings:
    rotary = getattr(decoder_of(hf), "rotary_emb", None)
    if rotary is None:
        raise CannotFollow("no rotary embedding of the whole model")
    try:
        return embeddings_of(rotary, config_of(hf), kind)
    except NotARotation as error:
        raise CannotFollow(str(error)) from error


def _rotations(
    hf: PreTrainedModel, layers: list[Any], embeddings: list[Embeddings]
) -> list[Rotation | None]:
    """How each layer turns; asked of the first layer of each kind."""
    known: dict[object, Rotation | None] = {}
    found = []
    for layer, embedding in zip(layers, embeddings, strict=True):
        kind = (kind_of(layer), tuple(embedding.frequencies.tolist()), embedding.scale)
        if kind not in known:
            try:
                known[kind] = rotation_of(layer, config_of(hf).hidden_size, embedding)
            except NotARotation as error:
                raise CannotFollow(str(error)) from error
        found.append(known[kind])
    return found


def _window(config: Any, layer: Any, heard: Heard, kind: str | None) -> int | None:
    """Most layers tell their attention function; some models only make masks with it."""
    window = heard.window
    if window is None and kind is not None:
        window = getattr(config, "sliding_window", None) if kind == "sliding_attention" else None
    elif window is None and not hasattr(attention_of(layer), "sliding_window"):
        uses = getattr(config, "use_sliding_window", True)
        window = getattr(config, "sliding_window", None) if uses else None
    return window if window and window < context_of(config) else None


def _block(config: Any, kind: str | None) -> int | None:
    """Of chunked attention, which layers only make masks with."""
    block = getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None
    return block if block and block < context_of(config) else None


def context_of(config: Any) -> int:
    """Tokens a prompt and its answer may have.

    YaRN reaches as far as its factor says (Qwen's configurations leave the length as it was);
    longrope has other angles from its original length on, for all positions of a prompt, which
    KV made for a shorter prompt does not know: prompts end there, unless they all get those angles.
    """
    tokens = int(config.max_position_embeddings)
    given: Any = getattr(config, "rope_parameters", None) or {}
    # some models have parameters of their own for each type of layer
    ropes = [given] if "rope_type" in given else [r for r in given.values() if isinstance(r, dict)]
    whole = getattr(config, "original_max_position_embeddings", None)
    reaches = []
    for rope in ropes:
        original = rope.get("original_max_position_embeddings") or whole
        changes = rope.get("short_factor") != rope.get("long_factor")
        if rope.get("rope_type") == "longrope" and original and changes:
            reaches.append(min(tokens, int(original)))
        elif rope.get("rope_type") == "yarn" and original and rope.get("factor"):
            reaches.append(max(tokens, int(original * rope["factor"])))
        else:
            reaches.append(tokens)
    return min(reaches, default=tokens)


def attention_of(layer: Any) -> Any:
    """The attention module of a layer, by the names that transformers gives it."""
    for name in ("self_attn", "attention", "attn"):
        if hasattr(layer, name):
            return getattr(layer, name)
    return layer


def kind_of(layer: Any) -> tuple[object, ...]:
    """What tells layers apart: the classes of their modules, and what these were told."""
    return (
        tuple(type(module).__name__ for module in layer.modules()),
        tuple(told for part in (layer, attention_of(layer)) for told in _plain(vars(part).items())),
    )


def _plain(fields: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in fields
        if name != "layer_idx" and isinstance(value, bool | int | float | str | None)
    ]


class _Kinds:
    """Kinds of layers as they are met. A layer without positions is of the kind of those that are
    like it otherwise: it does not need their angles."""

    def __init__(self, shape: Heads) -> None:
        self._shape = shape
        self._keys: list[tuple[Any, ...]] = []
        self._device = torch.device("cpu")

    def of(
        self,
        heard: Heard,
        rotation: Rotation | None,
        window: int | None,
        block: int | None,
        scale: float,
        device: torch.device,
    ) -> int:
        """The number of the layer's kind."""
        self._device = device
        facts = (heard.scale, window or 0, heard.softcap or 0.0, block or 0)
        turn = None if rotation is None else (tuple(rotation.frequencies.tolist()), scale)
        for number, (others, turns) in enumerate(self._keys):
            if others == facts and (turn is None or turns is None or turns == turn):
                if turns is None:
                    self._keys[number] = (facts, turn)
                return number
        self._keys.append((facts, turn))
        return len(self._keys) - 1

    def made(self) -> tuple[LayerKind, ...]:
        """All that were met."""
        kinds = []
        for (scale, window, softcap, block), turn in self._keys:
            frequencies, scaling = turn or ((), 1.0)
            angles = RotaryAngles(
                torch.tensor(frequencies, dtype=torch.float32, device=self._device), scaling
            )
            shape = self._shape
            heads = Heads(
                shape.heads, shape.kv_heads, shape.dim, scale, angles.rotary_dim, window, softcap,
                block,
            )  # fmt: skip
            kinds.append(LayerKind(heads, angles))
        return tuple(kinds)
