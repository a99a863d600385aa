"""How a layer turns its queries and keys, found out from the layer itself.

A rotary embedding takes pairs of a head's channels and turns each pair by position × frequency
(RoFormer, arXiv 2104.09864, §3.2). Which channels make a pair is a matter of layout: halves side
by side (Llama), neighbours (GLM, Cohere), a part of the head (Phi, GPT-NeoX), its end (DeepSeek).
Instead of a list of families, the layer is asked: its angles are switched on one at a time, and
what changes at its attention function tells the pairs. Any layout is then the kernels' own, the
first channels in halves, once the channels of queries and keys are put into another order: scores
do not depend on the order.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from chunkcache.engine.listening import Recorder, listening, number_type_of, run_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig

_TOLERANCE = 1e-5  # of an angle's cos and sin in fp32
_LAST_DIGITS = 4  # of the layer's number type, by which norms of the same numbers differ


class NotARotation(Exception):
    """The layer does to its queries or keys what no rotation of channels does; says what."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """A model's rotary embedding in the form its layers take, for one kind of layer.

    `frequencies` fp32 `[n]`; `scale` multiplies cos and sin; `index` int64 `[width]`: which
    frequency each of the numbers handed to a layer has. Some models hand over complex numbers.
    """

    frequencies: torch.Tensor
    scale: float
    index: torch.Tensor
    is_complex: bool

    @property
    def width(self) -> int:
        """Angles of one position, as a layer takes them."""
        return len(self.index)

    def of(self, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        """What a layer takes, of `[rows, width]`."""
        if self.is_complex:
            return torch.complex(cos.float(), sin.float())[None]
        return cos[None], sin[None]

    def identity(self, like: torch.Tensor) -> Any:
        """What turns nothing, for rows like `like` `[rows, …]`."""
        one = like.new_ones((1, 1)).expand(len(like), self.width)
        return self.of(one, one - 1)


def embeddings_of(rotary: Any, config: PreTrainedConfig, kind: str | None) -> Embeddings:
    """Those of a fresh instance of the model's rotary module: `model.to(bfloat16)` rounds the
    frequencies of the one inside the model.

    Args:
        kind: of layer, where the module keeps angles for several.

    Raises:
        NotARotation: its angles are not position × frequency.
    """
    fresh: Any = type(rotary)(config=config)
    prefix = f"{kind}_" if hasattr(fresh, f"{kind}_inv_freq") else ""
    frequencies = getattr(fresh, f"{prefix}inv_freq").to(torch.float32)
    scale = float(getattr(fresh, f"{prefix}attention_scaling", 1.0))
    more = (kind,) if prefix else ()
    made = fresh(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int64), *more)
    is_complex = torch.is_tensor(made) and made.is_complex()
    cos, sin = (made.real, made.imag) if is_complex else made
    cos, sin = cos.flatten().float(), sin.flatten().float()
    count, places = len(frequencies), torch.arange(len(cos))
    for index in (places % count, places * count // len(cos)):
        wanted = frequencies[index] * 1.0
        if torch.allclose(cos, wanted.cos() * scale, atol=_TOLERANCE) and torch.allclose(
            sin, wanted.sin() * scale, atol=_TOLERANCE
        ):
            return Embeddings(frequencies, scale, index, is_complex)
    raise NotARotation("angles that are not position × frequency")


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """`frequencies` fp32 `[pairs]`; `order`: the channels as the kernels take them, the first of
    every pair, then the second ones, then those that stay; None where they lie so already.
    """

    frequencies: torch.Tensor
    order: tuple[int, ...] | None

    @property
    def dim(self) -> int:
        """Channels that are turned."""
        return 2 * len(self.frequencies)


@torch.inference_mode()
def rotation_of(layer: Any, hidden_size: int, embeddings: Embeddings) -> Rotation | None:
    """What the layer does with its angles; None: nothing, it has no positions.

    Cost: one run of the layer over a row for each angle of a position. A norm without weights may
    stand behind the rotation, whose result no turn of whole pairs changes: where single angles say
    nothing, those of a pair are switched on together.

    Raises:
        NotARotation: queries or keys change otherwise than by turning pairs of channels.
    """
    index = embeddings.index
    singly = torch.eye(embeddings.width)
    try:
        plain, turned = _asked(layer, hidden_size, embeddings, singly)
        return _pairs(plain, turned, embeddings.frequencies[index], index, 0.0)
    except NotARotation:
        every = torch.arange(len(embeddings.frequencies))
        together = (index[None] == every[:, None]).float()
        plain, turned = _asked(layer, hidden_size, embeddings, together)
        eps = torch.finfo(number_type_of(layer).dtype).eps
        tolerance = _LAST_DIGITS * eps * float(plain.abs().max())  # a sum in another order
        return _pairs(plain, turned, embeddings.frequencies, every, tolerance)


def _pairs(
    plain: torch.Tensor,
    turned: torch.Tensor,
    frequencies: torch.Tensor,
    index: torch.Tensor,
    tolerance: float,
) -> Rotation | None:
    """The pairs; `frequencies` and `index`, which of them it is, of each thing switched on."""
    dim = plain.shape[-1]
    angle, partner, sign = [-1] * dim, [-1] * dim, [0] * dim
    for number, got in enumerate(turned.unbind(1)):
        changed = ((got - plain).abs() > tolerance).any(0)
        for channel in torch.nonzero(changed).flatten().tolist():
            if angle[channel] != -1:
                raise NotARotation("queries or keys that change after they are turned")
            angle[channel] = number
            partner[channel], sign[channel] = _source(got[:, channel], plain, tolerance)
    firsts = [c for c in range(dim) if sign[c] == -1]
    if not any(sign):
        return None
    for channel in firsts:
        other = partner[channel]
        ours, theirs = index[angle[channel]], index[angle[other]]
        if partner[other] != channel or sign[other] != 1 or ours != theirs:
            raise NotARotation("channels that are turned, but not in pairs")
    seconds = [partner[c] for c in firsts]
    if len(firsts) + len(seconds) != sum(map(bool, sign)):
        raise NotARotation("channels that are turned, but not in pairs")
    rest = [c for c in range(dim) if not sign[c]]
    order = [*firsts, *seconds, *rest]
    found = frequencies[[angle[c] for c in firsts]]
    return Rotation(found, None if order == list(range(dim)) else tuple(order))


def _asked(
    layer: Any, hidden_size: int, embeddings: Embeddings, switched: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries' and keys' channels `[heads, dim]` without any turn, and `[heads, n, dim]` with each
    row of `switched` `[n, width]` in turn: angles that are 1 there are a quarter of a circle. All
    rows are of one and the same hidden state.
    """
    rows = len(switched) + 1
    weight = number_type_of(layer)
    generator = torch.Generator().manual_seed(20260101)
    state = torch.randn(hidden_size, generator=generator).to(weight)
    cos = torch.ones(rows, embeddings.width)
    cos[1:] -= switched
    angles = embeddings.of(cos.to(weight), (1.0 - cos).to(weight))
    where = torch.zeros(rows, dtype=torch.int64, device=weight.device)
    recorder = Recorder()
    with _no_zeros(layer), listening(recorder):
        run_layer(layer, state.expand(rows, -1), angles, where)
    if len(recorder.heard) != 1:
        raise NotARotation("layers that do not attend once")
    heard = recorder.heard[0]
    both = torch.cat([heard.query, heard.key]).float().cpu()
    return both[:, 0], both[:, 1:]


@contextmanager
def _no_zeros(layer: Any) -> Iterator[None]:
    """Within, no norm and no bias of the layer makes a channel zero, which would tell nothing.

    Gemma 3 270m has such channels. The layer is as it was afterwards.
    """
    generator = torch.Generator().manual_seed(20260102)
    found = [p for p in layer.parameters() if p.ndim == 1 and p.is_floating_point()]
    kept = [parameter.clone() for parameter in found]
    try:
        for parameter in found:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        yield
    finally:
        for parameter, before in zip(found, kept, strict=True):
            parameter.copy_(before)


def _source(got: torch.Tensor, plain: torch.Tensor, tolerance: float) -> tuple[int, int]:
    """The channel, and its sign, whose numbers in all heads are those."""
    for sign in (1, -1):
        alike = ((plain * sign - got[:, None]).abs() <= tolerance).all(0)
        found = torch.nonzero(alike).flatten().tolist()
        if len(found) == 1:
            return found[0], sign
    raise NotARotation("queries or keys that change after they are turned")
