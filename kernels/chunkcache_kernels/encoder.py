"""A BERT-type encoder in C: packed rows, one thread a call. Twin: the transformers model itself.

The weights of products are rounded to 16 bits as `native/encoder.h` says; everything else is fp32.
Vectors differ from those of fp32 by some 1e-7 in cosine.
"""

from __future__ import annotations

import ctypes as c
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chunkcache_kernels.compiler import ENCODER, NoCompiler, build_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PAGE_TOKENS = 16  # of no meaning here but the widest vector
_COLUMNS = 32
_MOST_TERMS = 512
_NORM = 46000.0
_LARGEST = 32767.0
_FAMILIES = {"BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel"}


class LinearC(c.Structure):
    """`Linear` of encoder.h."""

    _fields_ = [
        ("numbers", c.c_void_p), ("steps", c.c_void_p), ("bias", c.c_void_p),
        ("in_", c.c_int32), ("out", c.c_int32), ("blocks", c.c_int32), ("unused", c.c_int32),
    ]  # fmt: skip


class EncoderLayerC(c.Structure):
    """`EncoderLayer` of encoder.h."""

    _fields_ = [
        ("qkv", LinearC), ("mixed", LinearC), ("up", LinearC), ("down", LinearC),
        ("mixed_norm", c.c_void_p), ("mixed_shift", c.c_void_p),
        ("down_norm", c.c_void_p), ("down_shift", c.c_void_p),
    ]  # fmt: skip


class EncoderC(c.Structure):
    """`Encoder` of encoder.h."""

    _fields_ = [
        ("layers", c.c_void_p), ("words", c.c_void_p), ("positions", c.c_void_p),
        ("norm", c.c_void_p), ("shift", c.c_void_p),
        ("num_layers", c.c_int32), ("width", c.c_int32), ("inner", c.c_int32),
        ("heads", c.c_int32), ("eps", c.c_float), ("unused", c.c_int32),
    ]  # fmt: skip


class NoEncoder(Exception):
    """This model cannot run here in C; the message says why."""


class PackedEncoder:
    """The encoder of a model, on the CPU. Thread-safe: calls run beside each other.

    Args:
        cache: where the compiled library is kept.
        model: a `BertModel` or one of its kin, in fp32. Its embeddings and norms are used as they
            are; its products are copied in 16 bits and no longer needed.

    Raises:
        NoEncoder: the model is of another kind, the processor has no vectors of 512 bits, or the
            library cannot be built.
    """

    def __init__(self, cache: Path, model: Any) -> None:
        _check(model)
        try:
            library = c.CDLL(str(build_library(cache, _PAGE_TOKENS, ENCODER)))
        except NoCompiler as error:
            raise NoEncoder(str(error)) from error
        if not library.chunkcache_encoder_here():
            raise NoEncoder("the processor has no AVX-512")
        library.chunkcache_encoder_bytes.argtypes = [c.c_void_p, c.c_int, c.c_int]
        library.chunkcache_encoder_bytes.restype = c.c_int64
        library.chunkcache_encode.argtypes = [
            c.c_void_p, c.c_void_p, c.c_void_p, c.c_int, c.c_int, c.c_void_p, c.c_void_p,
        ]  # fmt: skip
        library.chunkcache_encode.restype = None
        self._library = library
        self._keeps: list[object] = []  # what the structures point to
        config = model.config
        self.width: int = config.hidden_size
        self.vocabulary: int = config.vocab_size
        layers = [self._layer(layer) for layer in model.encoder.layer]
        described = (EncoderLayerC * len(layers))(*layers)
        self._keeps.append(described)
        embeddings = model.embeddings
        positions = embeddings.position_embeddings.weight
        if type(model).__name__ != "BertModel":  # positions begin behind the one for padding
            positions = positions[config.pad_token_id + 1 :]
        self.max_tokens: int = positions.shape[0]
        self._encoder = EncoderC(
            c.addressof(described),
            self._kept(embeddings.word_embeddings.weight),
            self._kept(positions + embeddings.token_type_embeddings.weight[0]),
            *self._norm(embeddings.LayerNorm),
            len(layers), self.width, config.intermediate_size, config.num_attention_heads,
            config.layer_norm_eps, 0,
        )  # fmt: skip

    def encode(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Hidden states of texts, one after the other: float32 `[sum of lengths, width]`.

        Every text must have 1 to `max_tokens` ids below the vocabulary's size.
        """
        lengths = [len(ids) for ids in token_ids]
        assert lengths and min(lengths) > 0 and max(lengths) <= self.max_tokens
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = np.fromiter((i for text in token_ids for i in text), np.int32, int(starts[-1]))
        assert ids.min() >= 0 and ids.max() < self.vocabulary
        of = c.addressof(self._encoder)
        size = self._library.chunkcache_encoder_bytes(of, len(ids), max(lengths))
        scratch = torch.empty(size, dtype=torch.uint8)  # aligned to 64 bytes, unlike numpy's
        hidden = np.empty((len(ids), self.width), np.float32)
        self._library.chunkcache_encode(
            of, ids.ctypes.data, starts.ctypes.data, len(lengths), max(lengths),
            hidden.ctypes.data, scratch.data_ptr(),
        )  # fmt: skip
        return hidden

    def _layer(self, layer: Any) -> EncoderLayerC:
        attention, output = layer.attention, layer.output
        three = (attention.self.query, attention.self.key, attention.self.value)
        weight = torch.cat([part.weight for part in three])
        bias = torch.cat([part.bias for part in three])
        return EncoderLayerC(
            self._linear(weight, bias),
            self._linear(attention.output.dense.weight, attention.output.dense.bias),
            self._linear(layer.intermediate.dense.weight, layer.intermediate.dense.bias),
            self._linear(output.dense.weight, output.dense.bias),
            *self._norm(attention.output.LayerNorm),
            *self._norm(output.LayerNorm),
        )

    def _linear(self, weight: torch.Tensor, bias: torch.Tensor) -> LinearC:
        out, terms = weight.shape
        blocks = _blocks(terms)
        split = weight.detach().float().view(out, blocks, terms // blocks)
        steps = torch.maximum(split.norm(dim=2) / _NORM, split.abs().amax(dim=2) / _LARGEST).clamp(
            min=torch.finfo(torch.float32).tiny
        )  # [out, blocks]
        narrow = (split / steps[..., None]).round().to(torch.int16)
        # [panels, columns, blocks, pairs, 2] -> [blocks, panels, pairs, columns, 2]
        panels = narrow.view(out // _COLUMNS, _COLUMNS, blocks, -1, 2).permute(2, 0, 3, 1, 4)
        return LinearC(
            self._kept(panels), self._kept(steps.T), self._kept(bias), terms, out, blocks, 0
        )

    def _norm(self, norm: Any) -> tuple[int, int]:
        return self._kept(norm.weight), self._kept(norm.bias)

    def _kept(self, tensor: torch.Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._keeps.append(tensor)
        return tensor.data_ptr()


def _blocks(terms: int) -> int:
    """The fewest blocks of at most 512 terms that are whole columns of a panel."""
    return next(
        blocks
        for blocks in range(1, terms // _COLUMNS + 1)
        if terms % (blocks * _COLUMNS) == 0 and terms // blocks <= _MOST_TERMS
    )


def _check(model: Any) -> None:
    """Raises `NoEncoder` for what is not written in encoder.c."""
    kind, config = type(model).__name__, model.config
    if kind not in _FAMILIES:
        raise NoEncoder(f"a {kind} is not one of {', '.join(sorted(_FAMILIES))}")
    if config.hidden_act != "gelu" or getattr(config, "is_decoder", False):
        raise NoEncoder(f"it has {config.hidden_act} or is a decoder")
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        raise NoEncoder(f"its positions are {config.position_embedding_type}")
    if any(parameter.dtype is not torch.float32 for parameter in model.parameters()):
        raise NoEncoder("it is not in fp32")
    head = config.hidden_size // config.num_attention_heads
    if head % _COLUMNS or config.hidden_size % _COLUMNS or config.intermediate_size % _COLUMNS:
        raise NoEncoder(f"its sizes are not multiples of {_COLUMNS}")
