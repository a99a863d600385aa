"""A decoder from transformers, run row by row: its own modules, our attention, our KV.

The model definition stays transformers'. We step its layers one at a time with an identity rotary
and keep the real angles aside in fp32, because angles in bf16 are garbage beyond a few hundred
tokens (docs/decisions/0002).
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import chunkcache_kernels as kernels
from chunkcache.chunk import KVGeometry
from chunkcache.engine.angles import RotaryAngles
from chunkcache.engine.attention import (
    ATTENTION_NAME,
    KVPool,
    Logits,
    RowBatch,
    rows_attention,
)
from chunkcache.engine.weights import no_loading_bar, resolve_model, weights_digest
from chunkcache.errors import ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from chunkcache.config import ModelSettings, Settings
    from chunkcache.engine.attention import SequenceRows
    from chunkcache_kernels.plan import RowPlan

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
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        reasons.append(f"layers of type {', '.join(sorted(layer_types - {'full_attention'}))}")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        reasons.append(f"a sliding window of {config.sliding_window} tokens")
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
        raise UnsupportedModel(
            f"model.name: {config.model_type!r} has {'; '.join(reasons)}. chunkcache serves full-"
            "attention rotary decoders (Llama, Mistral without window, Qwen2, Qwen3, SmolLM)."
        )


@dataclass(slots=True, eq=False)
class DecoderModel:
    """A loaded model, its tokenizer, and what a cache must know about it."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    geometry: KVGeometry
    fingerprint: bytes
    angles: RotaryAngles
    context_tokens: int
    eos_ids: frozenset[int]
    device: torch.device
    dtype: torch.dtype
    name: str

    def new_pool(self, num_slots: int) -> KVPool:
        """An empty pool of `num_slots` tokens for all layers."""
        shape = (num_slots, self.geometry.num_kv_heads, self.geometry.head_dim)

        def empty() -> list[torch.Tensor]:
            return [
                torch.empty(shape, dtype=self.dtype, device=self.device)
                for _ in range(self.geometry.num_layers)
            ]

        return KVPool(empty(), empty())

    @torch.inference_mode()
    def place(
        self, kv: torch.Tensor, positions: torch.Tensor, pool: KVPool, slots: torch.Tensor
    ) -> None:
        """Write a record's rows `[layers, 2, n, heads, dim]` to `slots`, K rotated to `positions`.

        Cost: one pass over the bytes; angles and products in fp32, one cast at the end.
        """
        cos, sin = self.angles.at(positions)
        still = (torch.ones_like(cos), torch.zeros_like(sin))
        decoder: Any = self.hf.model
        for index, layer in enumerate(decoder.layers):
            turn = (cos, sin) if getattr(layer.self_attn, "use_rope", True) else still
            key, value = kv[index]
            kernels.place_kv(key, value, *turn, pool.keys[index], pool.values[index], slots)

    @torch.inference_mode()
    def forward(self, sequences: Sequence[SequenceRows], pool: KVPool) -> list[torch.Tensor | None]:
        """Run rows of several sequences; write their KV; return fp32 logits per sequence.

        `[vocab]` where the last row's are wanted, `[rows, vocab]` where all are, else None. Groups
        of rows may enter and leave at different layers (`SequenceRows`): between two such layers
        all that are under way run together. Cost: one pass of the layers over all rows together.
        """
        heads = self.hf.config.num_attention_heads
        plans = [
            kernels.plan_rows(rows.positions, rows.slots, like=pool.keys[0], num_heads=heads)
            for rows in sequences
        ]
        states = self._entering(sequences)
        ends = [self._end_layer(rows) for rows in sequences]
        for first, end in pairwise(self._edges(sequences)):
            under_way = [
                i for i, rows in enumerate(sequences) if rows.first_layer <= first < ends[i]
            ]
            if under_way:
                batch = [sequences[i] for i in under_way]
                hidden = torch.cat([states[i] for i in under_way])
                attend = [plans[i] for i in under_way]
                hidden = self._layers(first, end, hidden, batch, attend, pool)
                parts = torch.split(hidden, [len(rows) for rows in batch])
                for i, part in zip(under_way, parts, strict=True):
                    states[i] = part
                    keep = sequences[i].keep
                    if keep is not None and keep.layer == end:
                        keep.parts.append(part.clone())  # not a view of the whole step
        return self._logits(states, sequences)

    def _entering(self, sequences: Sequence[SequenceRows]) -> list[torch.Tensor]:
        """Where each group begins: its hidden states, or its tokens' embeddings."""
        starting = [rows for rows in sequences if rows.hidden is None]
        if not starting:
            return [rows.hidden for rows in sequences if rows.hidden is not None]
        decoder: Any = self.hf.model
        ids = torch.cat([rows.token_ids for rows in starting]).to(self.device)
        embedded: torch.Tensor = decoder.embed_tokens(ids)
        parts = iter(torch.split(embedded, [len(rows) for rows in starting]))
        return [next(parts) if rows.hidden is None else rows.hidden for rows in sequences]

    def _end_layer(self, rows: SequenceRows) -> int:
        return self.geometry.num_layers if rows.end_layer is None else rows.end_layer

    def _edges(self, sequences: Sequence[SequenceRows]) -> list[int]:
        """Layers where rows enter, leave or are kept, the first and the last included."""
        edges = {0, self.geometry.num_layers}
        for rows in sequences:
            edges |= {rows.first_layer, self._end_layer(rows)}
            if rows.keep is not None:
                edges.add(rows.keep.layer)
        return sorted(edges)

    def _layers(
        self,
        first: int,
        end: int,
        hidden: torch.Tensor,
        sequences: list[SequenceRows],
        plans: list[RowPlan],
        pool: KVPool,
    ) -> torch.Tensor:
        """Hidden states `[rows, width]` through some of the layers."""
        decoder: Any = self.hf.model
        positions = torch.cat([rows.positions for rows in sequences]).to(self.device)
        batch = RowBatch(sequences, plans, pool, *self.angles.at(positions))
        hidden = hidden[None]
        one = hidden.new_ones((1, 1, 1)).expand(1, hidden.shape[1], self.geometry.head_dim)
        zero = torch.zeros_like(one)
        for layer in decoder.layers[first:end]:
            hidden = layer(hidden, position_embeddings=(one, zero), chunkcache_batch=batch)
            if isinstance(hidden, tuple):
                hidden = hidden[0]
        return hidden[0]

    def _logits(
        self, states: Sequence[torch.Tensor], sequences: Sequence[SequenceRows]
    ) -> list[torch.Tensor | None]:
        wanted = [
            {Logits.NONE: 0, Logits.LAST: 1, Logits.ALL: len(rows)}[rows.logits]
            for rows in sequences
        ]
        if not any(wanted):
            return [None] * len(sequences)
        hidden = torch.cat(
            [part[len(part) - count :] for part, count in zip(states, wanted, strict=True)]
        )
        model: Any = self.hf
        logits: torch.Tensor = model.lm_head(model.model.norm(hidden)).float()
        return [
            {Logits.NONE: None, Logits.LAST: part.flatten(), Logits.ALL: part}[rows.logits]
            for rows, part in zip(sequences, torch.split(logits, wanted), strict=True)
        ]


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
    fingerprint = model_fingerprint(
        config, tokenizer, weights_digest(folder, settings.cache), geometry_of(config, dtype)
    )
    return wrap_model(hf, tokenizer, fingerprint=fingerprint, name=model_alias(settings.model))


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
    digest = weights_digest(folder, settings.cache)
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


def model_alias(settings: ModelSettings) -> str:
    """The model's name for clients: the alias, or the last part of its id."""
    return settings.alias or settings.name.removeprefix("embedded:").rstrip("/").rpartition("/")[2]


def wrap_model(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, fingerprint: bytes, name: str
) -> DecoderModel:
    """Make a transformers model run rows; `fingerprint` as `model_fingerprint` makes it."""
    config = hf.config
    refuse_unsupported(config)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, rows_attention)
    config._attn_implementation = ATTENTION_NAME
    network: Any = hf
    network.eval().requires_grad_(False)
    dtype = next(hf.parameters()).dtype
    device = next(hf.parameters()).device
    decoder: Any = hf.model
    return DecoderModel(
        hf=hf,
        tokenizer=tokenizer,
        geometry=geometry_of(config, dtype),
        fingerprint=fingerprint,
        angles=RotaryAngles(decoder.rotary_emb, config, device),
        context_tokens=int(config.max_position_embeddings),
        eos_ids=_eos_ids(hf, tokenizer),
        device=device,
        dtype=dtype,
        name=name,
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
