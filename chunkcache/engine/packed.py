"""A model's layers with fewer, larger operations: fused products, no identity rotary, own kernels.

Many rows run as torch's matrix products with our norms, gate and attention between them; on a GPU
all rows do. Few rows on a CPU, as in decoding, run through all layers in one call of the C kernels,
which read every weight once: there the weights are kept as narrow as they can be without losing a
bit (a checkpoint in bf16 or fp16 that is computed in fp32 is read in 16 bits), and all arithmetic
is fp32. With int8 weights the modules' own weights are rounded to what 8 bits hold: all rows are of
one and the same model.

Twin: `ModuleLayers`, transformers' own modules; the gate compares both.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear, silu

from chunkcache.engine.facts import decoder_of
from chunkcache.engine.graphed import CudaCapture, GraphedLayers
from chunkcache_kernels.compiled import CompiledStep
from chunkcache_kernels.structs import TYPES, LayerC, LayersC, WeightC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from chunkcache.engine.attention import StepRows
    from chunkcache.engine.facts import ModelFacts
    from chunkcache_kernels.compiled import Team

FEW_ROWS = 16  # up to so many rows the weights are the cost, and are read once
# what these layers do is written down here; any other class keeps its own modules
KNOWN_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """Weights of one layer; products `[out, in]`, norms fp32."""

    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    gate_up: torch.Tensor
    down: torch.Tensor
    input_norm: torch.Tensor
    mlp_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    turned: bool


def packable(hf: PreTrainedModel) -> bool:
    """Whether every layer is of a kind that is written down here."""
    decoder: Any = hf.base_model
    return decoder is decoder_of(hf) and all(
        type(layer).__name__.removesuffix("DecoderLayer") in KNOWN_FAMILIES
        and getattr(layer.mlp, "act_fn", None).__class__.__name__ in {"SiLU", "SiLUActivation"}
        and not any(p.bias is not None for p in _mlp(layer))
        and all(_is_plain(part) for part in layer.modules() if hasattr(part, "in_features"))
        for layer in decoder.layers
    )


def _is_plain(product: Any) -> bool:
    """Whether it is weight and bias alone: of quantised ones the class, the call, or the class of
    the weight is another.
    """
    return (
        type(product) is torch.nn.Linear
        and "forward" not in vars(product)
        and type(product.weight) is torch.nn.Parameter
    )


def _mlp(layer: Any) -> tuple[Any, Any, Any]:
    return layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj


class PackedLayers:
    """Runs rows through the layers of a model that `packable` knows.

    The modules' q, k, v and gate, up weights become views of the fused ones: nothing is held twice
    but the narrow copies for few rows, where the model is computed in fp32. With `int8` the weights
    of all products, the output layer's too, are rounded in place.
    """

    def __init__(self, hf: PreTrainedModel, facts: ModelFacts, *, int8: bool = False) -> None:
        self._hf: Any = hf
        decoder = self._hf.model
        self._eps = float(decoder.norm.variance_epsilon)
        self._layers = [
            _fuse(layer, of.turned) for layer, of in zip(decoder.layers, facts.layers, strict=True)
        ]
        self._final_norm = decoder.norm.weight.float()
        head = self._hf.lm_head.weight
        self._few: _FewRows | None = None
        if head.device.type == "cpu":
            self._few = _FewRows(self._layers, head, self._eps, int8=int8)
        self._graphed: GraphedLayers | None = None
        if head.device.type == "cuda":
            self._graphed = GraphedLayers(self._through, CudaCapture(head.device))

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """See `LayerRunner`."""
        return self._hf.model.embed_tokens(token_ids)  # type: ignore[no-any-return]

    def run(self, first: int, end: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        if self._graphed is not None:
            done = self._graphed.run(first, end, hidden, rows)
            if done is not None:
                return done
        (kernels,) = rows.kernels
        few = len(hidden) <= FEW_ROWS and not rows.is_watched
        if few and self._few is not None and isinstance(kernels, CompiledStep):
            return self._few.run(first, end, hidden, rows, kernels)
        for index in range(first, end):
            rows.wait_for(index)
            hidden = self._through(index, hidden, rows)
        return hidden

    def _through(self, index: int, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """Hidden states behind a layer that is there."""
        team = rows.pool.team
        qkv = self.qkv(index, hidden, team)
        return self.rest(index, hidden, self.attend(index, qkv, rows), team)

    def store(self, layer: int, hidden: torch.Tensor, rows: StepRows) -> None:
        """See `LayerRunner`."""
        of, qkv = self._layers[layer], self.qkv(layer, hidden, rows.pool.team)
        rows.write(layer, qkv, query_norm=of.query_norm, key_norm=of.key_norm, eps=self._eps)

    def logits(self, hidden: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """See `LayerRunner`."""
        team = rows.pool.team
        normed = self._norm(hidden, self._final_norm, team)
        if team is not None and self._few is not None and len(hidden) <= FEW_ROWS:
            return team.product(self._few.head, normed.float())
        return linear(normed, self._hf.lm_head.weight).float()

    def qkv(self, index: int, hidden: torch.Tensor, team: Team | None) -> torch.Tensor:
        """Queries, keys and values of a layer's rows, before norms of their own and RoPE."""
        layer = self._layers[index]
        return linear(self._norm(hidden, layer.input_norm, team), layer.qkv, layer.qkv_bias)

    def attend(self, index: int, qkv: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """Write K and V, and attend."""
        layer = self._layers[index]
        return rows.attend(
            index, qkv, query_norm=layer.query_norm, key_norm=layer.key_norm, eps=self._eps
        )

    def rest(
        self, index: int, hidden: torch.Tensor, attended: torch.Tensor, team: Team | None
    ) -> torch.Tensor:
        """Hidden states behind the layer."""
        layer = self._layers[index]
        hidden = torch.addmm(hidden, attended, layer.out.t())
        if layer.out_bias is not None:
            hidden += layer.out_bias
        gate_up = linear(self._norm(hidden, layer.mlp_norm, team), layer.gate_up)
        return torch.addmm(hidden, _gated(gate_up, team), layer.down.t())

    def _norm(self, x: torch.Tensor, weight: torch.Tensor, team: Team | None) -> torch.Tensor:
        if team is not None:
            return team.norm(x.contiguous(), weight, self._eps)
        return torch.nn.functional.rms_norm(x.float(), weight.shape, weight, self._eps).to(x.dtype)


def _gated(gate_up: torch.Tensor, team: Team | None) -> torch.Tensor:
    if team is not None:
        return team.silu(gate_up)
    gate, up = gate_up.chunk(2, dim=1)
    return silu(gate) * up


def _fuse(layer: Any, turned: bool) -> _Layer:
    attention = layer.self_attn
    gate, up, down = _mlp(layer)
    bias = attention.q_proj.bias
    query_norm = getattr(attention, "q_norm", None)
    key_norm = getattr(attention, "k_norm", None)
    return _Layer(
        qkv=_fused([attention.q_proj, attention.k_proj, attention.v_proj]),
        qkv_bias=None if bias is None else torch.cat(
            [p.bias.data for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        ),
        out=attention.o_proj.weight.data,
        out_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.data,
        gate_up=_fused([gate, up]),
        down=down.weight.data,
        input_norm=layer.input_layernorm.weight.data.float(),
        mlp_norm=layer.post_attention_layernorm.weight.data.float(),
        query_norm=None if query_norm is None else query_norm.weight.data.float(),
        key_norm=None if key_norm is None else key_norm.weight.data.float(),
        turned=turned,
    )  # fmt: skip


def _fused(projections: Sequence[Any]) -> torch.Tensor:
    """One `[out, in]` for several products of the same input; the modules keep views of it."""
    together = torch.cat([p.weight.data for p in projections])
    start = 0
    for projection in projections:
        end = start + projection.weight.shape[0]
        projection.weight.data = together[start:end]
        start = end
    return together


def narrowest(weight: torch.Tensor) -> torch.Tensor:
    """The weight in the fewest bits that lose none of it: bf16, fp16, or as it is."""
    if weight.dtype is torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            narrow = weight.to(dtype)
            if torch.equal(narrow.float(), weight):
                return narrow
    return weight.contiguous()


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 `[out, in]` and fp32 scales `[out]`: each row by its own largest number, symmetric."""
    wide = weight.float()
    scales = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127.0
    return (wide / scales[:, None]).round().to(torch.int8), scales


class _FewRows:
    """The weights as the C kernels take them, and one call for all layers."""

    def __init__(
        self, layers: Sequence[_Layer], head: torch.Tensor, eps: float, *, int8: bool
    ) -> None:
        self._eps = eps
        self._int8 = int8
        self._keeps: list[object] = []  # what the pointers point to
        self.head = self._weight(head.data, None)
        self._inner = layers[0].down.shape[1]
        self._layers = (LayerC * len(layers))(*map(self._described, layers))

    def _described(self, layer: _Layer) -> LayerC:
        return LayerC(
            self._weight(layer.qkv, layer.qkv_bias), self._weight(layer.out, layer.out_bias),
            self._weight(layer.gate_up, None), self._weight(layer.down, None),
            *map(self._pointer, (
                layer.input_norm, layer.mlp_norm, layer.query_norm, layer.key_norm,
            )),
            int(layer.turned), 0,
        )  # fmt: skip

    def _weight(self, weight: torch.Tensor, bias: torch.Tensor | None) -> WeightC:
        scales: torch.Tensor | None = None
        if self._int8:
            narrow, scales = to_int8(weight)
            weight.copy_(narrow * scales[:, None])  # the same model for many rows
        else:
            narrow = narrowest(weight)
        wide = None if bias is None else bias.float()
        return WeightC(
            self._pointer(narrow), self._pointer(scales), self._pointer(wide),
            TYPES[narrow.dtype], *narrow.shape, 0,
        )  # fmt: skip

    def _pointer(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._keeps.append(tensor)
        return tensor.data_ptr()

    def run(
        self, first: int, end: int, hidden: torch.Tensor, rows: StepRows, kernels: CompiledStep
    ) -> torch.Tensor:
        """Hidden states through layers `first` to `end`, written to pages on the way; in one call,
        unless layers of chunks are still coming up.
        """
        count, width = hidden.shape
        team, of = kernels.team, kernels.turned
        attended = of.heads * of.dim
        state = hidden.to(torch.float32, copy=True)
        sizes = (
            team.members * count * width, count * (attended + 2 * of.kv_heads * of.dim),
            count * attended, 2 * count * self._inner, count * self._inner,
        )  # fmt: skip
        buffers = torch.empty(sum(sizes)).split_with_sizes(sizes)
        call = LayersC(
            c.addressof(self._layers), first, end, count, width, self._inner, self._eps,
            c.addressof(kernels.turned), c.addressof(kernels.still), rows.slots.ctypes.data, 0, 0,
            state.data_ptr(), *(buffer.data_ptr() for buffer in buffers),
            kernels.scratch.data_ptr(),
        )  # fmt: skip
        while call.first < end:
            call.end = min(end, rows.wait_for(call.first))
            team.library.chunkcache_layers(team.handle, c.addressof(call))
            call.first = call.end
        return state.to(hidden.dtype)
