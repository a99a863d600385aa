"""Facts of a layer: how it attends, read once from the model, for planner, pages and kernels.

Nothing else asks a model's modules or its configuration how a layer attends, and nothing assumes
that all layers are alike. A fact that the kernels do not follow yet is a reason to refuse the
model, in words, before any row is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """How one layer attends.

    `turned`: its keys have positions (RoPE), which turn the first `rotary_dim` channels of a head;
    `scale` multiplies scores; `window`: only so many positions up to its own are seen, None for
    all; `softcap`: scores are bounded by c·tanh(s/c); `sinks`: it has a learnt score beside the
    keys' that takes weight and gives no value.
    """

    turned: bool
    rotary_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


def facts_of(hf: PreTrainedModel, rotary_dim: int) -> tuple[LayerFacts, ...]:
    """The facts of every layer of a model, in order.

    A window that no prompt can outgrow (`max_position_embeddings` or more) is none.
    """
    decoder: Any = hf.model
    longest = int(hf.config.max_position_embeddings)
    found = []
    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        window = _window(hf.config, attention, index)
        turned = bool(getattr(attention, "use_rope", True))  # SmolLM3 has layers without positions
        found.append(
            LayerFacts(
                turned=turned,
                rotary_dim=rotary_dim if turned else 0,
                scale=float(attention.scaling),
                window=window if window and window < longest else None,
                softcap=getattr(attention, "attn_logit_softcapping", None) or None,
                sinks=getattr(attention, "sinks", None) is not None,
            )
        )
    return tuple(found)


def _window(config: Any, attention: Any, index: int) -> int | None:
    """Some models say it of a layer, some have a list of kinds, some only make masks with it."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or None
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return window if kinds[index] == "sliding_attention" else None
    return window if getattr(config, "use_sliding_window", True) else None


def not_followed(facts: Sequence[LayerFacts]) -> list[str]:
    """What the kernels do not do of these, in words; each names the layers it is true of."""
    found = {
        "a sliding window": [f.window is not None for f in facts],
        "capped scores": [f.softcap is not None for f in facts],
        "attention sinks": [f.sinks for f in facts],
        "scores scaled unlike the first layer's": [f.scale != facts[0].scale for f in facts],
    }
    return [f"{what} (layers {_numbers(where)})" for what, where in found.items() if any(where)]


def _numbers(where: Sequence[bool]) -> str:
    numbers = [i for i, is_so in enumerate(where) if is_so]
    shown = ", ".join(map(str, numbers[:4]))
    return shown + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
