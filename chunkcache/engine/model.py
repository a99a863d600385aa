"""A decoder out of a model that transformers has loaded: what is refused, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_dir
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chunkcache.chunk import KVGeometry
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.facts import CannotFollow, ModelFacts, config_of, context_of, facts_of
from chunkcache.engine.layers import ModuleLayers
from chunkcache.engine.listening import ATTENTION_NAME, attention_function, number_type_of
from chunkcache.engine.packed import KNOWN_FAMILIES, PackedLayers, packable
from chunkcache.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_PACKED_ON = {"cpu", "cuda"}
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
# part of the fingerprint: change it when records change meaning
_LAYOUT = "kv/2 k-before-rope, pairs in halves"


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of the part that reads text: the whole, unless the model reads images or sound too."""
    found: PreTrainedConfig = config.get_text_config(decoder=True)
    return found


def refuse_unsupported(config: PreTrainedConfig) -> None:
    """Raise for architectures whose KV cannot be moved by a rotation, naming the reason.

    Raises:
        UnsupportedModel: recurrent layers, no rotary, encoder-decoders.
    """
    reasons = []
    other_types = set(getattr(config, "layer_types", None) or []) - _LAYER_TYPES
    if other_types:
        reasons.append(f"layers of type {', '.join(sorted(other_types))}")
    if not getattr(config, "rope_parameters", None):
        reasons.append("no rotary embedding")
    if getattr(config, "is_encoder_decoder", False):
        reasons.append("an encoder")
    if getattr(config, "altup_num_inputs", 1) > 1:  # Gemma 3n
        reasons.append("several hidden states of each token (AltUp)")
    if reasons:
        raise _unsupported(config, reasons)


def loader_of(config: PreTrainedConfig) -> Any:
    """The class of transformers that loads such a model: one that reads images besides text is
    loaded whole, and used for text.
    """
    reads = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees and not reads else AutoModelForCausalLM


def use_long_angles(config: PreTrainedConfig) -> None:
    """Make longrope's angles for long prompts those of all prompts.

    transformers takes them for a prompt longer than the original length, for all its positions; so
    KV made for a short prompt would be wrong in a long one.

    Raises:
        UnsupportedModel: the model has no longrope.
    """
    rope: Any = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        raise UnsupportedModel(
            f"model.longrope: got 'long', but {config.model_type!r} has no longrope. Hint: short."
        )
    rope["short_factor"] = rope["long_factor"]


def _unsupported(config: PreTrainedConfig, reasons: list[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"model.name: {config.model_type!r} has {'; '.join(reasons)}. chunkcache serves decoders "
        "whose layers attend to rotated keys (see docs/reference/models.md)."
    )


def wrap_model(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    fingerprint: bytes,
    name: str,
    kernel_cache: Path | None = None,
    int8: bool = False,
) -> DecoderModel:
    """Make a transformers model run rows; `fingerprint` as `model_fingerprint` makes it.

    With `int8` its weights are rounded to 8 bits, in place. Compiled kernels are kept
    in `kernel_cache`, or else in the user's cache directory.

    Raises:
        UnsupportedModel: see `refuse_unsupported`; or int8 weights are asked for of layers that
            only run as transformers' own modules.
    """
    config: Any = config_of(hf)
    refuse_unsupported(config)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attention_function)
    config._attn_implementation = ATTENTION_NAME
    network: Any = hf
    network.eval().requires_grad_(False)
    like = number_type_of(hf)
    dtype, device = like.dtype, like.device
    geometry = geometry_of(config, dtype)
    facts = _facts(hf, geometry)
    packs = device.type in _PACKED_ON and facts.are_alike and packable(hf)
    if int8 and not (packs and device.type == "cpu"):
        raise UnsupportedModel(
            f"model.weights: got 'int8', which is for models on a CPU whose layers are "
            f"{', '.join(sorted(KNOWN_FAMILIES))}; this is {config.model_type!r} on {device.type}. "
            "Hint: auto."
        )
    return DecoderModel(
        hf=hf,
        tokenizer=tokenizer,
        geometry=geometry,
        fingerprint=fingerprint,
        facts=facts,
        runner=PackedLayers(hf, facts, int8=int8) if packs else ModuleLayers(hf, facts),
        context_tokens=context_of(config),
        eos_ids=_eos_ids(hf, tokenizer),
        device=device,
        dtype=dtype,
        name=name,
        kernel_cache=kernel_cache or Path(user_cache_dir("chunkcache", appauthor=False)),
    )


def _facts(hf: PreTrainedModel, geometry: KVGeometry) -> ModelFacts:
    """How its layers attend; `UnsupportedModel`, in words, whatever a model's own code raises."""
    try:
        facts = facts_of(hf)
    except CannotFollow as error:
        raise _unsupported(config_of(hf), [str(error)]) from error
    except Exception as error:
        reason = f"layers that do not run one at a time ({type(error).__name__}: {error})"
        raise _unsupported(config_of(hf), [reason]) from error
    heads = facts.kinds[0].heads
    if (heads.kv_heads, heads.dim) != (geometry.num_kv_heads, geometry.head_dim):
        raise _unsupported(config_of(hf), ["keys of another shape than its configuration says"])
    return facts


def _eos_ids(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ids: set[int] = set()
    generation = getattr(hf, "generation_config", None)
    for source in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        ids.update(source if isinstance(source, list) else [source] if source is not None else [])
    return frozenset(ids)


def geometry_of(config: PreTrainedConfig, dtype: torch.dtype) -> KVGeometry:
    """Shape and number type of the KV a model of this configuration makes."""
    heads = config.num_attention_heads
    # layers may have heads of their own
    each: Any = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    kv_heads = max(getattr(one, "num_key_value_heads", None) or heads for one in each)
    dim = max(getattr(one, "head_dim", None) or one.hidden_size // heads for one in each)
    if getattr(config, "kv_lora_rank", None):  # latent attention: as its heads read it
        kv_heads, dim = heads, config.qk_nope_head_dim + config.qk_rope_head_dim
    return KVGeometry(
        num_layers=config.num_hidden_layers,
        num_kv_heads=kv_heads,
        head_dim=dim,
        dtype=str(dtype).removeprefix("torch."),
        rope=json.dumps(config.rope_parameters, sort_keys=True, default=str),
    )


def model_fingerprint(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    weights: str,
    geometry: KVGeometry,
) -> bytes:
    """Digest of all that changes KV or token ids: weights, architecture, RoPE, dtype, vocabulary.

    `weights` is a digest of the parameters (`weights_digest`).
    """
    described = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    for volatile in ("transformers_version", "dtype", "use_cache", "attn_implementation"):
        described.pop(volatile, None)
    vocabulary = hashlib.sha256(
        json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False).encode()
    ).hexdigest()
    fields = [
        _LAYOUT, weights, json.dumps(described, sort_keys=True, default=str),
        geometry.dtype, geometry.rope, vocabulary,
    ]  # fmt: skip
    return hashlib.sha256("\x00".join(fields).encode()).digest()
