"""Loading a decoder from transformers: what is refused, its number type, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from platformdirs import user_cache_dir
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chunkcache.chunk import KVGeometry
from chunkcache.engine.angles import RotaryAngles
from chunkcache.engine.attention import ATTENTION_NAME, rows_attention
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.facts import facts_of, not_followed
from chunkcache.engine.layers import ModuleLayers
from chunkcache.engine.packed import KNOWN_FAMILIES, PackedLayers, packable
from chunkcache.engine.weights import no_loading_bar, resolve_model, weights_digest
from chunkcache.errors import ModelNotFound, UnsupportedModel
from chunkcache_kernels import Heads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from chunkcache.config import ModelSettings, Settings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LAYOUT = "kv/1 k-before-rope"  # part of the fingerprint: change it when records change meaning


def choose_device(wanted: str) -> torch.device:
    """The device named in the settings; `auto` prefers CUDA."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 on CUDA and on processors with native bf16 products, else fp32."""
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def refuse_unsupported(config: PreTrainedConfig) -> None:
    """Raise for architectures whose KV cannot be moved by a rotation, naming the reason.

    Raises:
        UnsupportedModel: sliding windows, hybrid or recurrent layers, MLA, partial rotary, mRoPE,
            angles that depend on the sequence length, encoder-decoders.
    """
    reasons = []
    other_types = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if not window or window >= config.max_position_embeddings:
        other_types.discard("sliding_attention")  # no prompt can outgrow it
    elif getattr(config, "use_sliding_window", True):
        reasons.append(f"a sliding window of {window} tokens")
    if other_types:
        reasons.append(f"layers of type {', '.join(sorted(other_types))}")
    if getattr(config, "kv_lora_rank", None):
        reasons.append("latent attention (MLA)")
    rope = getattr(config, "rope_parameters", None) or {}
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        reasons.append("partial rotary embedding")
    if rope.get("mrope_section"):
        reasons.append("multimodal rotary embedding (mRoPE)")
    if rope.get("rope_type") in {"dynamic", "longrope"}:
        reasons.append(f"rope type {rope['rope_type']!r}, whose angles depend on the length")
    if not rope:
        reasons.append("no rotary embedding")
    if getattr(config, "is_encoder_decoder", False):
        reasons.append("an encoder")
    if reasons:
        raise _unsupported(config, reasons)


def _unsupported(config: PreTrainedConfig, reasons: list[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"model.name: {config.model_type!r} has {'; '.join(reasons)}. chunkcache serves full-"
        "attention rotary decoders (Llama, Mistral without window, Qwen2, Qwen3, SmolLM)."
    )


def load_model(settings: Settings) -> DecoderModel:
    """Load the model named in the settings and make it ready to run rows.

    `model.num_threads`, when given, is set for the whole process: torch knows no other way.

    Raises:
        ModelNotFound: nothing at that id or path.
        UnsupportedModel: an architecture that is refused (see `refuse_unsupported`).
    """
    if settings.model.num_threads:
        torch.set_num_threads(settings.model.num_threads)
    source = resolve_model(settings.model.name, settings.cache)
    try:
        config = AutoConfig.from_pretrained(source)
        refuse_unsupported(config)
        tokenizer = AutoTokenizer.from_pretrained(source)
        device = choose_device(settings.model.device)
        dtype = choose_dtype(settings.model.dtype, device)
        is_local = Path(source).is_dir()
        with no_loading_bar() if is_local else nullcontext():  # a download's bar is worth seeing
            hf: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        hf = hf.to(device)
        folder = Path(hf.config._name_or_path) if is_local else _hub_folder(source)
    except OSError as error:
        raise ModelNotFound(
            f"model.name: cannot load {settings.model.name!r}: {str(error).splitlines()[0]} "
            "Hint: give a hub id that can be reached or a local folder."
        ) from error
    digest = _digest_as_run(folder, settings)
    fingerprint = model_fingerprint(config, tokenizer, digest, geometry_of(config, dtype))
    return wrap_model(
        hf, tokenizer,
        fingerprint=fingerprint, name=model_ids(settings.model)[0],
        int8=settings.model.weights == "int8", kernel_cache=settings.cache,
    )  # fmt: skip


def _digest_as_run(folder: Path, settings: Settings) -> str:
    """Of the weights, and of what is made of them before they run."""
    digest = weights_digest(folder, settings.cache)
    return digest if settings.model.weights == "auto" else f"{digest} {settings.model.weights}"


def load_fingerprint(settings: Settings) -> bytes:
    """The fingerprint `load_model` would give, without loading the weights (one `stat` per file).

    Raises:
        ModelNotFound: nothing at that id or path.
    """
    source = resolve_model(settings.model.name, settings.cache)
    dtype = choose_dtype(settings.model.dtype, choose_device(settings.model.device))
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        folder = Path(source) if Path(source).is_dir() else _hub_folder(source)
    except OSError as error:
        raise ModelNotFound(
            f"model.name: cannot read {settings.model.name!r}: {str(error).splitlines()[0]}"
        ) from error
    digest = _digest_as_run(folder, settings)
    return model_fingerprint(config, tokenizer, digest, geometry_of(config, dtype))


def _hub_folder(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, local_files_only=True))


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone, for splitting: no weights are read.

    Raises:
        ModelNotFound: nothing at that id or path.
    """
    source = resolve_model(settings.model.name, settings.cache)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise ModelNotFound(
            f"model.name: no tokenizer in {settings.model.name!r}: {str(error).splitlines()[0]}"
        ) from error
    return tokenizer


def model_ids(settings: ModelSettings) -> tuple[str, ...]:
    """The model's names for clients, its own first: the aliases, or the last part of its id."""
    if settings.alias:
        return tuple(settings.alias.split(","))
    return (settings.name.removeprefix("embedded:").rstrip("/").rpartition("/")[2],)


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
    config = hf.config
    refuse_unsupported(config)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, rows_attention)
    config._attn_implementation = ATTENTION_NAME
    network: Any = hf
    network.eval().requires_grad_(False)
    dtype = next(hf.parameters()).dtype
    device = next(hf.parameters()).device
    decoder: Any = hf.model
    geometry = geometry_of(config, dtype)
    angles = RotaryAngles(decoder.rotary_emb, config, device)
    facts = facts_of(hf, angles.rotary_dim)
    if reasons := not_followed(facts):
        raise _unsupported(config, reasons)
    heads = Heads(
        heads=config.num_attention_heads,
        kv_heads=geometry.num_kv_heads,
        dim=geometry.head_dim,
        scale=facts[0].scale,
        rotary_dim=angles.rotary_dim,
    )
    packs = device.type == "cpu" and packable(hf)
    if int8 and not packs:
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
        angles=angles,
        heads=heads,
        facts=facts,
        runner=PackedLayers(hf, facts, int8=int8) if packs else ModuleLayers(hf, geometry.head_dim),
        context_tokens=int(config.max_position_embeddings),
        eos_ids=_eos_ids(hf, tokenizer),
        device=device,
        dtype=dtype,
        name=name,
        kernel_cache=kernel_cache or Path(user_cache_dir("chunkcache", appauthor=False)),
    )


def _eos_ids(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ids: set[int] = set()
    generation = getattr(hf, "generation_config", None)
    for source in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        ids.update(source if isinstance(source, list) else [source] if source is not None else [])
    return frozenset(ids)


def geometry_of(config: PreTrainedConfig, dtype: torch.dtype) -> KVGeometry:
    """Shape and number type of the KV a model of this configuration makes."""
    heads = config.num_attention_heads
    return KVGeometry(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
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
