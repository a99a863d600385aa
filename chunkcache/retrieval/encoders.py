"""Token ids of texts → hidden states: transformers' own model, or the compiled one where it can be.

Both are run by threads of one core each, as many as there are cores, each with some texts: no
thread waits for another, and none disturbs the engine's team (`cores.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import structlog
import torch

from chunkcache_kernels.encoder import NoEncoder, PackedEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

_FURTHEST = 1e-5  # cosine, between the compiled model and its twin
_PROBE_TOKENS = (3, 17, 40)


class Encoder(Protocol):
    """A model up to its last hidden states. Thread-safe."""

    @property
    def width(self) -> int:
        """Numbers of a hidden state."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens that are best encoded together."""
        ...

    def encode(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Hidden states of texts, one after the other: float32 `[sum of lengths, width]`."""
        ...


class PaddedEncoder:
    """A transformers model: texts of a batch are filled up to the longest."""

    batch_tokens = 1024  # keeps activations small, of every core

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id
        self.width = int(model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Encoder`. Texts of like length cost least."""
        longest = max(map(len, token_ids))
        padded = torch.full((len(token_ids), longest), self._pad_id)
        mask = torch.zeros_like(padded)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state
        rows: np.ndarray = hidden[mask.bool()].numpy()
        return rows


class CompiledEncoder:
    """See `PackedEncoder`."""

    batch_tokens = 384  # as many as are worth fetching the weights for

    def __init__(self, packed: PackedEncoder) -> None:
        self._packed = packed
        self.width = packed.width

    def encode(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Encoder`. No cost depends on which texts come together."""
        return self._packed.encode(token_ids)


def open_encoder(model: Any, pad_id: int, max_tokens: int, cache: Path | None) -> Encoder:
    """The compiled model if there is one and it agrees with its twin, else the twin.

    Args:
        cache: where compiled code is kept; None does without.
    """
    twin = PaddedEncoder(model, pad_id)
    if cache is None:
        return twin
    try:
        packed = PackedEncoder(cache, model)
        if packed.max_tokens < max_tokens:
            raise NoEncoder(f"it has {packed.max_tokens} positions, {max_tokens} are asked for")
        distance = _distance(packed, twin, max_tokens)
        if not distance < _FURTHEST:  # NaN too
            raise NoEncoder(f"its vectors are {distance:.1e} from transformers' own")
    except NoEncoder as error:
        log.info("embedder_not_compiled", reason=str(error))
        return twin
    return CompiledEncoder(packed)


def _distance(packed: PackedEncoder, twin: PaddedEncoder, max_tokens: int) -> float:
    """The largest cosine distance of mean hidden states over a few texts of random tokens."""
    draw = np.random.default_rng(0)
    furthest = 0.0
    for tokens in _PROBE_TOKENS:
        ids = draw.integers(1, packed.vocabulary, min(tokens, max_tokens)).tolist()
        ours, theirs = (e.encode([ids]).mean(0).astype(np.float64) for e in (packed, twin))
        cosine = ours @ theirs / np.sqrt((ours @ ours) * (theirs @ theirs))
        furthest = max(furthest, 1.0 - float(cosine)) if cosine == cosine else float("nan")
    return furthest
