"""A small random twin of a model: all that decides attention kept, everything else made small.

In fp32 and narrow, a prompt of thousands of tokens costs seconds: long enough to see a window, a
rotary that changes beyond some length, or attention scaled by position, which a short prompt never
reaches. Its weights are made so that attention is far from flat.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from chunkcache.engine.facts import attention_of, decoder_of, kind_of, layers_of
from chunkcache.engine.model import wrap_model
from chunkcache.engine.row_state import is_shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig, PreTrainedModel

    from chunkcache.engine.decoder import DecoderModel

LONG_TOKENS = 2400  # of the prompt that a twin is tried with
_FEW_LAYERS = 3
_FAR_TOKENS = 2048  # a length at which something changes: from there on it is brought nearer
_NEAR_TOKENS = 1024
_LENGTHS = ("window", "original_max_position", "attention_chunk", "floor_scale")
_LARGEST = {  # of what does not decide attention; a field is named by how it ends
    "intermediate_size": 96, "vocab_size": 512, "vocab_size_per_layer_input": 512,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id")


class CannotReduce(Exception):
    """No small twin could be built from the model's configuration; the message says why."""


def twin_layers(model: DecoderModel) -> list[int]:
    """The first layers in order, as many as it takes to have one of each kind."""
    first = _first_of_each_kind(model)
    return list(range(min(model.geometry.num_layers, max(_FEW_LAYERS, max(first) + 1))))


def single_layers(model: DecoderModel) -> list[list[int]]:
    """One layer of each kind that makes keys, each to be a twin of its own."""
    layers = layers_of(model.hf)
    return [[index] for index in _first_of_each_kind(model) if not is_shared(layers[index])]


def reduced_model(model: DecoderModel, layers: Sequence[int]) -> DecoderModel:
    """The twin in fp32 with these layers of the model, on its device.

    Layers told apart by lists of the configuration (`layer_types`, `no_rope_layers`) may be any;
    those told apart by counting only if all before them are there too.

    Raises:
        CannotReduce: the configuration does not allow it, or transformers cannot run the twin.
    """
    config = reduced_config(model, layers)
    make: Any = _maker(model)
    try:
        with torch.random.fork_rng(devices=[]):  # building it must not move the caller's dice
            network = make(config).float().to(model.device).eval()
        randomise(network, model.geometry.head_dim)
        with torch.inference_mode():
            network(torch.arange(8, device=model.device)[None], use_cache=False)
        return wrap_model(
            network,
            model.tokenizer,
            fingerprint=b"reduced",
            name=f"{model.name}, reduced",
            kernel_cache=model.kernel_cache,
        )
    except Exception as error:  # whatever a model's own code raises on sizes it was not made for
        raise CannotReduce(
            f"no reduced {type(model.hf).__name__} can be built: {type(error).__name__}: {error}"
        ) from error


def _maker(model: DecoderModel) -> Any:
    """What makes a network of a configuration; of a model that sees images too, of the part that
    reads.
    """
    if model.hf.config is model.config:
        return type(model.hf)
    if type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM.from_config
    decoder: Any = type(decoder_of(model.hf))
    return lambda config: Reader(decoder(config))


class Reader(torch.nn.Module):
    """A decoder that is only known as a part of other models, with an output layer."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.config = decoder.config
        self.model = decoder
        self.lm_head = torch.nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)

    @property
    def base_model(self) -> Any:
        """As transformers calls it."""
        return self.model

    def get_decoder(self) -> Any:
        """As transformers calls it."""
        return self.model

    def forward(self, input_ids: torch.Tensor, **told: Any) -> Any:
        """What transformers' models return of it that anybody reads: `logits`."""
        return SimpleNamespace(logits=self.lm_head(self.model(input_ids, **told)[0]))


def reduced_config(model: DecoderModel, layers: Sequence[int]) -> PreTrainedConfig:
    """The model's configuration with few layers, heads, experts and tokens, and near lengths."""
    config: PreTrainedConfig = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    kv_heads = min(model.geometry.num_kv_heads, 2)
    heads = kv_heads * min(config.num_attention_heads // model.geometry.num_kv_heads, 2)
    overrides = _own_fields(config, layers, kv_heads, model.geometry.num_kv_heads)
    given = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * model.geometry.head_dim,
    }
    for name, value in list(vars(config).items()):
        if name.startswith("_") or name == "num_hidden_layers":
            continue
        if isinstance(value, list) and len(value) == model.geometry.num_layers:
            setattr(config, name, [value[i] for i in layers])
        elif value is not None and name in given:
            setattr(config, name, given[name])
        elif name in _SPECIAL_TOKENS and value is not None:
            setattr(config, name, 0)  # some configurations want a number
        elif name == "eos_token_id":
            setattr(config, name, None)  # nothing ends an answer
        elif (largest := _largest(name)) and isinstance(value, int):
            setattr(config, name, min(value, largest))
        elif is_length(name, value):
            setattr(config, name, _brought_near(value))
    rope: Any = config.rope_parameters
    config.rope_parameters = {
        k: _brought_near(v) if is_length(k, v) else v for k, v in rope.items()
    }
    if shared := getattr(config, "num_kv_shared_layers", None):  # the last ones
        config.num_kv_shared_layers = sum(i >= model.geometry.num_layers - shared for i in layers)
    config.num_hidden_layers = len(layers)
    if overrides:
        config.per_layer_config = overrides
    return config


def _own_fields(config: Any, layers: Sequence[int], kv_heads: int, whole: int) -> Any:
    """What single layers have otherwise than the others, by their new numbers."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    found = {}
    for number, index in enumerate(layers):
        own = dict(config._heterogeneity_spec.per_layer_overrides.get(index, {}))
        if "num_key_value_heads" in own:
            own["num_key_value_heads"] = max(1, kv_heads * own["num_key_value_heads"] // whole)
        for name, value in own.items():
            if (largest := _largest(name)) and isinstance(value, int):
                own[name] = min(value, largest)
        found[number] = own
    config.per_layer_config = None
    return {number: own for number, own in found.items() if own}


def is_length(name: str, value: Any) -> bool:
    """Whether a field of a configuration names a number of tokens at which attention changes."""
    return type(value) is int and value > 0 and any(part in name for part in _LENGTHS)


def _brought_near(tokens: int) -> int:
    return _NEAR_TOKENS if tokens >= _FAR_TOKENS else tokens


def _largest(name: str) -> int | None:
    return next((n for ending, n in _LARGEST.items() if name.endswith(ending)), None)


def _first_of_each_kind(model: DecoderModel) -> list[int]:
    kinds = [kind_of(layer) for layer in layers_of(model.hf)]
    return [i for i, kind in enumerate(kinds) if kinds.index(kind) == i]


@torch.no_grad()
def randomise(network: PreTrainedModel, head_dim: int) -> None:
    """Weights that keep the size of what they multiply, q and k somewhat larger.

    Products of q and k then have a standard deviation of about 3, whatever the model scales them
    by: attention to thousands of keys rests on a handful.
    """
    generator = torch.Generator().manual_seed(20260101)
    attention = attention_of(layers_of(network)[0])
    scaling = getattr(attention, "scaling", None) or head_dim**-0.5
    sharper = float(head_dim**-0.5 / scaling) ** 0.5
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        is_query_or_key = any(part in name for part in ("q_proj", "k_proj", "qkv_proj"))
        if parameter.ndim == 1:
            parameter.add_(0.1 * noise)
            if "q_norm" in name or "k_norm" in name:
                parameter.add_(1.75 * sharper - 1)
        else:
            gain = 1.75 * sharper if is_query_or_key else 1.75
            parameter.copy_(gain / parameter.shape[-1] ** 0.5 * noise)
