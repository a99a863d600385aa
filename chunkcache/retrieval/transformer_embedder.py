"""An embedder from a sentence-transformers folder, without that library.

Tokens → encoder → pooling → what the folder has behind it → unit length: the pipeline that
`embedder_folder.py` reads. Twin: sentence-transformers itself.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch
import xxhash
from tokenizers import normalizers
from transformers import AutoModel, AutoTokenizer

from chunkcache.cores import count_cores, one_core
from chunkcache.cutting import cut_as_file_says
from chunkcache.errors import ModelNotFound
from chunkcache.retrieval.documents import valid_unicode
from chunkcache.retrieval.embedder_folder import Dense, EmbedderFolder, read_folder
from chunkcache.retrieval.encoders import open_encoder
from chunkcache.retrieval.pooling import finished, pooled
from chunkcache.retrieval.prompts import Prompts, choose
from chunkcache.retrieval.splitter import own_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

log = structlog.get_logger(__name__)

_VERSION = "transformer/1"  # part of the fingerprint: change it when vectors change
_READ_CHARS = 100_000  # of a text; what a model reads of it ends long before
_SHARES_PER_CORE = 4
_CHARS_PER_TOKEN = 4  # about; texts are shared out before they are tokenised


class TransformerEmbedder:
    """A model in this process, on the CPU, in float32. Thread-safe.

    Texts are read up to `max_tokens` (256 for all-MiniLM-L6-v2, special tokens included); what is
    beyond does not take part in the vector. A vector does not depend on the texts it is made with.

    Args:
        source: a folder or hub id.
        prompts: what goes before queries and passages, where the settings say so.
        cache: where compiled code is kept; None does without, several times slower.

    Raises:
        ModelNotFound: nothing can be loaded from `source`.
        UnsupportedModel: see `read_folder`.
    """

    def __init__(
        self, name: str, source: str, prompts: Prompts | None = None, cache: Path | None = None
    ) -> None:
        self.name = name
        try:
            folder = Path(source) if Path(source).is_dir() else _hub_folder(source)
            self._folder = read_folder(folder)
            inner = self._folder.transformer
            place = source if inner == folder else str(inner)
            tokenizer: Any = AutoTokenizer.from_pretrained(place)
            cut_as_file_says(tokenizer, inner / "tokenizer.json")
            with one_core():
                model: Any = AutoModel.from_pretrained(place, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"retrieval.embedder: cannot load {name!r}: {str(error).splitlines()[0]} "
                "Hint: give a hub id that can be reached or a local folder."
            ) from error
        model = model.eval().requires_grad_(False)
        self.dim = _dim(model.config.hidden_size, self._folder)
        self.max_tokens = _max_tokens(self._folder, tokenizer, model)
        names = (name, str(getattr(model.config, "_name_or_path", "")))
        self.prompts = choose(prompts or Prompts(), self._folder.stated, names)
        if self.prompts.origin != "none":
            log.info("embedder_prompts", query=self.prompts.query, passage=self.prompts.passage,
                     origin=self.prompts.origin)  # fmt: skip
        self._pad_id = int(tokenizer.pad_token_id or 0)
        # A core of our own, asked for one text at a time: it is configured once, so threads cannot
        # disturb each other, and never starts the library's thread pool, which dislikes forks.
        self._tokenizer = own_tokenizer(tokenizer)
        if self._folder.lower_case:
            before = self._tokenizer.normalizer
            steps = [normalizers.Lowercase(), *([before] if before is not None else [])]
            self._tokenizer.normalizer = normalizers.Sequence(steps)
        vocabulary = self._tokenizer.to_str()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.encode_special_tokens = True  # a passage is text, whatever it says
        self._special = frozenset(tokenizer.all_special_ids)
        self.fingerprint = f"{name} {self._digest(model.config, vocabulary)[:32]}"
        with one_core():
            self._encoder = open_encoder(model, self._pad_id, self.max_tokens, cache)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder`. On all cores when there is work for them."""
        return self._embed(texts, self.prompts.passage)

    def embed_query(self, text: str) -> np.ndarray:
        """See `Embedder`. With the model's own prompt for queries, if it has one."""
        vector: np.ndarray = self._embed([text], self.prompts.query)[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `Embedder`. Special tokens are counted, as the model reads them."""
        return sum(len(self._encode(self.prompts.passage + text)) for text in texts)

    def _encode(self, text: str) -> list[int]:
        read = valid_unicode("text", text)[:_READ_CHARS]
        ids: list[int] = self._tokenizer.encode(read).ids
        return ids or [self._pad_id]  # of an empty text, where the tokenizer adds nothing

    def _embed(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        made = torch.empty(len(texts), self._folder.pooled_dim(self._encoder.width))
        chars, most_tokens = [len(text) for text in texts], self._encoder.batch_tokens
        shares = _shares(chars, most_tokens, self.max_tokens)
        run = partial(self._run, made, texts, prompt)
        if len(shares) > 1:  # passages to ingest: worth all cores
            enough = _SHARES_PER_CORE * count_cores()
            if len(shares) < enough:  # or the last ones would wait for one of them
                shares = _shares(chars, most_tokens * len(shares) // enough, self.max_tokens)
            members = min(len(shares), count_cores())
            with ThreadPoolExecutor(members, thread_name_prefix="chunkcache-embed") as threads:
                list(threads.map(run, shares))
        else:  # a question: the engine may be running beside it
            for share in shares:
                run(share)
        with one_core():
            vectors: np.ndarray = finished(made, self._folder).numpy()
        return vectors

    def _run(
        self, made: torch.Tensor, texts: Sequence[str], prompt: str, places: list[int]
    ) -> None:
        """Pooled vectors of the texts at these places into theirs."""
        skipped = 0 if self._folder.include_prompt else self._prompt_tokens(prompt)
        token_ids = [self._encode(prompt + texts[place]) for place in places]
        with one_core():
            for batch in _batches([len(ids) for ids in token_ids], self._encoder.batch_tokens):
                some = [token_ids[index] for index in batch]
                hidden = torch.from_numpy(self._encoder.encode(some))
                parts = torch.split(hidden, [len(ids) for ids in some])
                for index, part in zip(batch, parts, strict=True):
                    made[places[index]] = pooled(part, self._folder, skipped)

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, the one that opens every text among them, but not the closing one."""
        if not prompt:
            return 0
        ids = self._encode(prompt)
        return len(ids) - (ids[-1] in self._special)

    def _digest(self, config: Any, vocabulary: str) -> str:
        """Of all that changes vectors."""
        folder = self._folder
        behind = [s if isinstance(s, str) else s.activation for s in folder.steps]
        parts = [
            _VERSION, _weights_digest(folder.transformer),
            hashlib.sha256(vocabulary.encode()).hexdigest(),
            json.dumps(config.to_diff_dict(), sort_keys=True, default=str),
            str(self.max_tokens), "+".join(folder.pooling),
            self.prompts.query, self.prompts.passage,
        ]  # fmt: skip
        if any(isinstance(step, Dense) for step in folder.steps):
            parts += [*behind, *map(_weights_digest, folder.weight_folders[1:])]
        if not folder.include_prompt:
            parts.append("prompts are not pooled")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _shares(chars: Sequence[int], batch_tokens: int, max_tokens: int) -> list[list[int]]:
    """Places of the texts, longest first, in shares of about `batch_tokens` tokens."""
    shares: list[list[int]] = []
    held = 0
    for place in sorted(range(len(chars)), key=lambda p: -chars[p]):
        size = min(chars[place], _CHARS_PER_TOKEN * max_tokens) + _CHARS_PER_TOKEN
        if not shares or held + size > _CHARS_PER_TOKEN * batch_tokens:
            shares.append([])
            held = 0
        shares[-1].append(place)
        held += size
    return shares


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Places of the texts, longest first, in batches of bounded padded size."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        batch = batches[-1] if batches else []
        width = lengths[batch[0]] if batch else 0
        if batch and width * (len(batch) + 1) <= batch_tokens:
            batch.append(place)
        else:
            batches.append([place])
    return batches


def _hub_folder(hub_id: str) -> Path:
    """The downloaded snapshot; its small configuration files are fetched when they are missing."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*_Dense/*.bin"]
    return Path(snapshot_download(hub_id, allow_patterns=wanted))


def _dim(width: int, folder: EmbedderFolder) -> int:
    dim = folder.pooled_dim(width)
    for step in folder.steps:
        if isinstance(step, Dense):
            dim = step.weight.shape[0]
    return dim


def _max_tokens(folder: EmbedderFolder, tokenizer: Any, model: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    if positions and padding is not None:  # RoBERTa's positions begin behind the one for padding
        positions -= padding + 1
    limits = [folder.max_seq_length, tokenizer.model_max_length, positions]
    return int(min(limit for limit in limits if limit and limit > 0))


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
