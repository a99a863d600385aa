"""An embedder from a sentence-transformers folder, run with plain transformers.

Tokens → encoder → pooling (mean over the attention mask, or the first token) → unit length: the
pipeline that a folder's `modules.json` describes. Others are refused, because their vectors would
be quietly wrong.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from transformers import AutoModel, AutoTokenizer

from chunkcache.cores import in_own_thread, one_core
from chunkcache.errors import ModelNotFound, UnsupportedModel
from chunkcache.retrieval.documents import valid_unicode
from chunkcache.retrieval.splitter import own_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

_VERSION = "transformer/1"  # part of the fingerprint: change it when vectors change
_BATCH_TOKENS = 4096  # padded tokens in a batch: keeps activations below some 100 MB
_BATCH_TEXTS = 64
_KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}


class TransformerEmbedder:
    """A model in this process, on the CPU, in float32. Thread-safe.

    Texts are read up to `max_tokens` (256 for all-MiniLM-L6-v2, special tokens included); what is
    beyond does not take part in the vector. Cost: some 0.1 s of one core per passage of 256 tokens
    for a model of 22 million parameters.

    Raises:
        ModelNotFound: nothing can be loaded from `source`.
        UnsupportedModel: see the module.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source)
            with one_core():
                model: Any = AutoModel.from_pretrained(source, dtype=torch.float32)
            folder = Path(source) if Path(source).is_dir() else _hub_folder(source)
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"retrieval.embedder: cannot load {name!r}: {str(error).splitlines()[0]} "
                "Hint: give a hub id that can be reached or a local folder."
            ) from error
        self._model = model.eval().requires_grad_(False)
        self.dim = int(model.config.hidden_size)
        self.max_tokens = _max_tokens(folder, tokenizer, model.config)
        self._pooling = _pooling(folder)
        self._query_prompt, self._passage_prompt = _prompts(folder)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        # A core of our own, asked for one text at a time: it is configured once, so threads cannot
        # disturb each other, and never starts the library's thread pool, which dislikes forks.
        self._tokenizer = own_tokenizer(tokenizer)
        vocabulary = self._tokenizer.to_str()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.encode_special_tokens = True  # a passage is text, whatever it says
        parts = [
            _VERSION, _weights_digest(folder), hashlib.sha256(vocabulary.encode()).hexdigest(),
            json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str),
            str(self.max_tokens), self._pooling, self._query_prompt, self._passage_prompt,
        ]  # fmt: skip
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        self.fingerprint = f"{name} {digest[:32]}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder`. Texts of like length run together, so that little is padding."""
        return self._embed([self._passage_prompt + text for text in texts])

    def embed_query(self, text: str) -> np.ndarray:
        """See `Embedder`. With the model's own prompt for queries, if it has one."""
        vector: np.ndarray = self._embed([self._query_prompt + text])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `Embedder`. Special tokens are counted, as the model reads them."""
        return sum(len(self._encode(self._passage_prompt + text)) for text in texts)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(valid_unicode("text", text)).ids
        return ids or [self._pad_id]  # of an empty text, where the tokenizer adds nothing

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        token_ids = [self._encode(text) for text in texts]
        batches = _batches([len(ids) for ids in token_ids])
        if len(batches) > 1:  # passages to ingest: worth all cores
            return in_own_thread(self._run, token_ids, batches)
        with one_core():  # a question: the engine may be running beside it
            return self._run(token_ids, batches)

    def _run(self, token_ids: list[list[int]], batches: list[list[int]]) -> np.ndarray:
        vectors = np.empty((len(token_ids), self.dim), np.float32)
        for places in batches:
            vectors[places] = self._forward([token_ids[place] for place in places])
        return vectors

    @torch.inference_mode()
    def _forward(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(map(len, token_ids))
        padded = torch.full((len(token_ids), longest), self._pad_id)
        mask = torch.zeros_like(padded)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return vectors


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of the texts, longest first, in batches of bounded padded size."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        batch = batches[-1] if batches else []
        width = lengths[batch[0]] if batch else 0
        if batch and len(batch) < _BATCH_TEXTS and width * (len(batch) + 1) <= _BATCH_TOKENS:
            batch.append(place)
        else:
            batches.append([place])
    return batches


def _hub_folder(hub_id: str) -> Path:
    """The downloaded snapshot; its small configuration files are fetched when they are missing."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.txt"]))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _pooling(folder: Path) -> str:
    """`mean` or `cls`, from the folder's description; `mean` when there is none.

    Raises:
        UnsupportedModel: another pooling, or further layers.
    """
    modules = _read_json(folder / "modules.json") or []
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    unknown = set(kinds) - _KNOWN_MODULES
    if unknown:
        raise UnsupportedModel(
            f"retrieval.embedder: a model with {', '.join(sorted(unknown))} layers is not "
            "supported. Hint: use one with mean or first-token pooling alone."
        )
    config = _read_json(folder / (kinds.get("Pooling") or "1_Pooling") / "config.json")
    if config is None:
        return "mean"
    modes = {
        name.removeprefix("pooling_mode_") for name, on in config.items()
        if name.startswith("pooling_mode_") and on is True
    }  # fmt: skip
    names = {"mean_tokens": "mean", "cls_token": "cls"}
    if len(modes) != 1 or not modes <= set(names):
        raise UnsupportedModel(
            f"retrieval.embedder: pooling by {', '.join(sorted(modes)) or 'nothing'} is not "
            "supported. Hint: use a model with mean or first-token pooling."
        )
    return names[modes.pop()]


def _prompts(folder: Path) -> tuple[str, str]:
    """What goes before a query and before a passage: some models are trained with such words."""
    config = _read_json(folder / "config_sentence_transformers.json") or {}
    prompts = config.get("prompts") or {}
    passage = prompts.get("document") or prompts.get("passage") or ""
    return prompts.get("query") or "", passage


def _max_tokens(folder: Path, tokenizer: Any, config: Any) -> int:
    stated = (_read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    limits = [stated, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    return int(min(limit for limit in limits if limit))


def _weights_digest(folder: Path) -> str:
    """xxh3-128 over the weight files; one read of them, 30 ms for 90 MB."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not files:
        raise ModelNotFound(f"retrieval.embedder: no *.safetensors or *.bin files in {folder}.")
    hasher = xxhash.xxh3_128()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                hasher.update(block)
    return hasher.hexdigest()
