"""Attention over pages beside torch's own: rows of sequences that read chunks, and rows of theirs.

Chunks of 512 tokens come first in a prompt, then tokens of its own. Rows that repair recomputes
stand in chunks and hide the chunks' rows there. torch gets the same keys and values in one piece,
keys already rotated to where they stand, a copy for each sequence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from kernel_cases import Case, bytes_of, cold_copies, in_turn, name_of, relative
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from chunkcache_kernels import (
    Arena,
    Heads,
    Layout,
    PortableStep,
    PortableWeights,
    Rotary,
    Segment,
    SequenceLayout,
    lay_out,
    turned,
)
from chunkcache_kernels.compiled import CompiledStep, CompiledWeights, Team

THETA = 1e5
PAGE, CHUNK = 32, 512
OWN, CHUNKS = 0, 1


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of `chunks` chunks and `own` tokens; the last `rows` of each are run, or `scattered`
    ones in its chunks and the last one. Several sequences have the same chunks, each in its order,
    or each its own.
    """

    what: str
    rows: int
    chunks: int
    own: int = 64
    sequences: int = 1
    scattered: bool = False
    shares: bool = True

    @property
    def written(self) -> int:
        """Chunks there are."""
        return self.chunks if self.shares else self.chunks * self.sequences

    @property
    def tokens(self) -> int:
        """Length of each."""
        return self.chunks * CHUNK + self.own

    @property
    def size(self) -> str:
        """As the table shows it."""
        of = f" of {self.sequences}" if self.sequences > 1 else ""
        return f"{self.what}: {self.rows * self.sequences} rows{of}, {self.tokens} keys"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Heads of a model, and what is measured of them."""

    heads: Heads
    attended: tuple[Prompts, ...]
    weighed: tuple[Prompts, ...]
    page_types: tuple[torch.dtype, ...]


MODELS = {
    "SmolLM2-135M": Sizes(
        Heads(9, 3, 64, 64**-0.5, 64),
        (Prompts("decode", 1, 2), Prompts("decode", 1, 8), Prompts("shared", 1, 10, sequences=16),
         Prompts("question", 32, 8), Prompts("repair", 128, 8, scattered=True),
         Prompts("repair", 512, 8, scattered=True),
         Prompts("prefill", 512, 0, own=512), Prompts("prefill", 512, 0, own=4096)),
        (Prompts("question", 32, 8), Prompts("capture", 512, 0, own=560)),
        (torch.float32, torch.bfloat16, torch.int8),
    ),
    "Llama-3-8B": Sizes(
        Heads(32, 8, 128, 128**-0.5, 128),
        (Prompts("decode", 1, 16), Prompts("decode", 1, 16, sequences=8, shares=False),
         Prompts("decode", 1, 64, sequences=8, shares=False),
         Prompts("shared", 1, 16, sequences=32), Prompts("question", 32, 16),
         Prompts("repair", 384, 16, scattered=True), Prompts("prefill", 512, 16, own=512)),
        (Prompts("question", 32, 16), Prompts("capture", 512, 0, own=560)),
        (torch.bfloat16, torch.int8),
    ),
}  # fmt: skip


class Scene:
    """Pages of some prompts and their rows, in `layers` equal layers; queries make scores with a
    standard deviation of 2, as measured in SmolLM2.

    The chunks' keys and values lie in pages as `pages` says, rows and their own pages as `rows`.
    """

    def __init__(
        self, of: Prompts, pages: torch.dtype, rows: torch.dtype, device: torch.device, heads: Heads
    ) -> None:
        self.of, self.device, self.heads = of, device, heads
        self.dtype = rows
        self.rotary = angles(of.tokens + PAGE, heads.dim, device)
        in_torch = of.sequences * 2 * of.tokens * heads.kv_heads * heads.dim * self.dtype.itemsize
        self.layers = cold_copies(in_torch)
        chunks = self._drawn(of.written * CHUNK)
        spare = 0 if of.chunks else PAGE  # an arena has a page
        self.arenas = [
            self._arena(of.sequences * of.tokens + PAGE * of.sequences, self.dtype),
            self._arena(of.written * CHUNK + spare, pages),
        ]
        self.chunks = self._write_chunks(chunks) if of.chunks else chunks.double()
        self.rows = [self._positions() for _ in range(of.sequences)]
        self.keys, self.values, self.sequences, slots = [], [], [], []
        for number in range(of.sequences):
            slots.append(self._sequence(number))
        self.slots = np.concatenate(slots)
        group = heads.heads // heads.kv_heads
        self.layout: Layout = lay_out(self.sequences, page_tokens=PAGE, group=group)
        width = (heads.heads + 2 * heads.kv_heads) * heads.dim
        self.qkv = torch.randn(of.sequences * of.rows, width, device=device).to(self.dtype)
        self.qkv[:, : heads.heads * heads.dim] *= 2

    def _drawn(self, tokens: int) -> torch.Tensor:
        """K before RoPE and V `[2, tokens, heads, dim]`, fp32 numbers of the rows' type."""
        shape = (2, tokens, self.heads.kv_heads, self.heads.dim)
        return torch.randn(shape, device=self.device).to(self.dtype).float()

    def _arena(self, tokens: int, dtype: torch.dtype) -> Arena:
        pages = -(-tokens // PAGE)
        sizes = self.layers, pages, self.heads.kv_heads, self.heads.dim, PAGE
        return Arena.empty(*sizes, dtype=dtype, device=self.device)

    def _write(self, arena: int, pages: np.ndarray, places: torch.Tensor, kv: torch.Tensor) -> None:
        keys = turned(kv[0], *self.rotary.at(places))
        layers = [x.expand(self.layers, *x.shape) for x in (keys, kv[1])]
        self.arenas[arena].write_chunk(pages, *layers)

    def _write_chunks(self, kv: torch.Tensor) -> torch.Tensor:
        """K before RoPE and V of the chunks as their pages have them, fp64."""
        places = torch.arange(CHUNK).repeat(self.of.written)
        every = np.arange(self.of.written * CHUNK // PAGE, dtype=np.int64)
        self._write(CHUNKS, every, places, kv)
        if self.arenas[CHUNKS].key_scales is None:
            return kv.double()
        keys, values = self.arenas[CHUNKS].read_rows(0, every)
        return torch.stack((rotated(keys, -places), values.double()))

    def _positions(self) -> np.ndarray:
        of = self.of
        if not of.scattered:
            return np.arange(of.tokens - of.rows, of.tokens)
        inside = torch.randperm(of.chunks * CHUNK)[: of.rows - 1].sort().values.numpy()
        return np.append(inside, of.tokens - 1)

    def _sequence(self, number: int) -> np.ndarray:
        """Lay out one sequence, keep what torch is to see of it; the slots of its rows."""
        of, rows = self.of, self.rows[number]
        first = 0 if of.shares else number * of.chunks
        order = (first + torch.randperm(of.chunks)).tolist()
        segments = []
        for place, chunk in enumerate(order):
            pages = np.arange(CHUNK // PAGE, dtype=np.int32) + chunk * (CHUNK // PAGE)
            segments.append(Segment.of_chunk(CHUNKS, pages, PAGE, place * CHUNK, 0, CHUNK))
            segments[-1].hide(rows)
        tail = np.arange(of.chunks * CHUNK, of.tokens)
        own = np.union1d(rows, tail)
        count = -(-len(own) // PAGE)
        first = number * (self.arenas[OWN].num_pages // of.sequences)
        pages = np.arange(first, first + count, dtype=np.int32)
        shown = np.full(count * PAGE, np.iinfo(np.int32).max, dtype=np.int32)
        shown[: len(own)] = own
        segments.append(Segment(OWN, pages, 0, shown))
        kv, standing = self._drawn(len(own)), torch.from_numpy(own)
        self._write(OWN, pages.astype(np.int64), standing, kv)
        shape = 2, of.written, CHUNK, *self.chunks.shape[2:]
        chunked = self.chunks.view(shape)[:, order].flatten(1, 2)
        seen = torch.cat((chunked, chunked.new_zeros((2, of.own, KV_HEADS, DIM))), dim=1)
        seen[:, standing] = kv.double()
        self.keys.append(rotated(seen[0], torch.arange(of.tokens)))
        self.values.append(seen[1])
        self.sequences.append(SequenceLayout(rows, segments))
        slots = first * PAGE + np.searchsorted(own, rows)
        return slots.astype(np.int32)

    # ------------------------------------------------------------ the slow twins

    def queries(self, number: int) -> torch.Tensor:
        """Of one sequence, before RoPE, `[rows, heads, dim]`."""
        rows = slice(number * self.of.rows, (number + 1) * self.of.rows)
        return self.every_query()[rows]

    def every_query(self) -> torch.Tensor:
        """Of all sequences, before RoPE, `[rows of all, heads, dim]`."""
        heads, dim = self.heads.heads, self.heads.dim
        return self.qkv[:, : heads * dim].unflatten(1, (heads, dim))

    def sees(self, number: int) -> torch.Tensor:
        """bool `[rows, tokens]`."""
        rows = torch.from_numpy(self.rows[number]).to(self.device)
        return torch.arange(self.of.tokens, device=self.device)[None] <= rows[:, None]

    def exact_weights(self, number: int) -> torch.Tensor:
        """fp64 `[kv_heads, group, rows, tokens]`: one explicit softmax over keys as they stand."""
        at = torch.from_numpy(self.rows[number])
        query = rotated(self.queries(number), at).unflatten(1, (self.heads.kv_heads, -1))
        scores = torch.einsum("rkgd,tkd->kgrt", query, self.keys[number]) * self.heads.scale
        return scores.masked_fill_(~self.sees(number), -torch.inf).softmax(-1)

    def exact(self) -> torch.Tensor:
        """fp64 `[rows of all, heads · dim]`."""
        parts = [
            torch.einsum("kgrt,tkd->rkgd", self.exact_weights(n), self.values[n]).flatten(1)
            for n in range(self.of.sequences)
        ]
        return torch.cat(parts)

    def for_torch(self) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Queries `[S, heads, rows, dim]`, KV `[layers, 2, S, kv_heads, tokens, dim]`, and a mask:
        none for one row, a word for the last rows, which flash attention knows, else numbers.

        All are rotated, in one piece, in the rows' number type.
        """
        at = torch.from_numpy(np.concatenate(self.rows))
        query = turned(self.every_query(), *self.rotary.at(at)).to(self.dtype)
        query = query.view(self.of.sequences, self.of.rows, *query.shape[1:]).transpose(1, 2)
        kv = torch.stack((torch.stack(self.keys), torch.stack(self.values)))
        kv = kv.to(self.dtype).transpose(2, 3)
        kv = kv.expand(self.layers, *kv.shape).contiguous()
        if self.of.rows == 1:
            return query, kv, None
        if not self.of.scattered and self.device.type == "cuda":
            return query, kv, causal_lower_right(self.of.rows, self.of.tokens)
        return query, kv, self.mask()

    def mask(self) -> torch.Tensor:
        """`[S, 1, rows, tokens]`: 0 where a row sees a key, else -inf."""
        sees = torch.stack([self.sees(n) for n in range(self.of.sequences)])[:, None]
        mask = torch.zeros(sees.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~sees, -torch.inf)


def angles(positions: int, dim: int, device: torch.device) -> Rotary:
    """RoPE's, taken in fp64."""
    turns = torch.outer(torch.arange(positions).double(), frequencies(dim))
    parts = [part.float().repeat(1, 2).to(device) for part in (turns.cos(), turns.sin())]
    return Rotary(*parts)


def frequencies(dim: int) -> torch.Tensor:
    """fp64 `[dim / 2]`."""
    return THETA ** -(torch.arange(0, dim, 2).double() / dim)


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`x` `[n, heads, dim]` turned to `positions`, all in fp64."""
    dim = x.shape[-1]
    turns = torch.outer(positions.double(), frequencies(dim)).to(x.device)
    pairs = torch.complex(x[..., : dim // 2].double(), x[..., dim // 2 :].double())
    pairs = pairs * torch.polar(torch.ones_like(turns), turns)[:, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def bind(team: Team | None, scene: Scene) -> Any:
    """The fastest kernels there are for these pages."""
    given = scene.layout, scene.arenas, scene.heads, scene.rotary
    if team is not None:
        return CompiledStep.bind(team, *given)
    if runs_triton(scene.device):
        from chunkcache_kernels.triton_pages import TritonStep

        return TritonStep.bind(*given)
    return PortableStep(*given)


def runs_triton(device: torch.device) -> bool:
    """On CUDA, or where its interpreter is on (for tests of this script; it takes minutes)."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def step_cases(
    team: Team | None, model: str, pages: torch.dtype, device: torch.device
) -> Iterator[Case]:
    """All cases of chunks' pages of one number type, made one at a time."""
    sizes = MODELS[model]
    heads, rows = sizes.heads, pages
    if pages is torch.int8:
        rows = torch.bfloat16 if device.type == "cuda" else torch.float32
    for of in sizes.attended:
        if of.chunks or pages is not torch.int8:
            yield attend_case(team, Scene(of, pages, rows, device, heads), name_of(pages))
    if pages is not torch.int8:
        write = Prompts("write", 512, 0, own=512)
        yield write_case(team, Scene(write, pages, rows, device, heads))
    for of in sizes.weighed:
        if of.chunks or pages is not torch.int8:
            yield weights_case(team, Scene(of, pages, rows, device, heads), name_of(pages))


def attend_case(team: Team | None, scene: Scene, pages: str) -> Case:
    """Attention of a bound step, beside the twin and one call of torch's with the mask ready."""
    ours = bind(team, scene)
    twin = PortableStep(scene.layout, scene.arenas, scene.heads, scene.rotary)
    query, kv, mask = scene.for_torch()

    def by_torch(layer: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(
            query, layer[0], layer[1], attn_mask=mask, scale=scene.heads.scale, enable_gqa=True
        )

    exact = scene.exact()
    torch_error = relative(by_torch(kv[0]).transpose(1, 2).flatten(2).flatten(0, 1), exact)
    layers: Sequence[int] = range(scene.layers)
    arms = {"ours": in_turn(partial(_attend, ours, scene.qkv), list(layers))}
    if not isinstance(ours, PortableStep):
        arms["portable"] = in_turn(partial(_attend, twin, scene.qkv), list(layers))
    arms["torch"] = in_turn(by_torch, list(kv))
    if scene.device.type == "cuda":
        arms |= {"flex": in_turn(by_flex(scene, query), list(kv))}
    seen = sum(int(scene.sees(n).sum()) for n in range(scene.of.sequences))
    return Case(
        "attend", scene.of.size, pages, arms, _page_bytes(scene) + 2 * bytes_of(query),
        flops=4 * scene.heads.heads * scene.heads.dim * seen,
        error=relative(ours.attend(0, scene.qkv), exact),
        torch_error=torch_error, limit=2 * torch_error + 5e-7,
    )  # fmt: skip


def by_flex(scene: Scene, query: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """FlexAttention, compiled, with blocks that nobody sees left out."""
    at = torch.from_numpy(np.stack(scene.rows)).to(scene.device)

    def sees(batch: Any, head: Any, row: Any, key: Any) -> Any:
        return key <= at[batch, row]

    of = scene.of
    blocks = create_block_mask(sees, of.sequences, None, of.rows, of.tokens, device=scene.device)
    compiled = torch.compile(flex_attention)

    def attend(layer: torch.Tensor) -> Any:
        return compiled(query, layer[0], layer[1], block_mask=blocks, scale=scene.heads.scale,
                        enable_gqa=True)  # fmt: skip

    return attend


def _attend(step: Any, qkv: torch.Tensor, layer: int) -> torch.Tensor:
    return step.attend(layer, qkv)


def _page_bytes(scene: Scene) -> int:
    """Bytes of the pages of one layer that some row looks at, each counted once."""
    looked, layout = 0, scene.layout
    for arena, first, count in layout.runs.tolist():
        pages = len(np.unique(layout.pages[first : first + count]))
        looked += pages * scene.arenas[arena].page_bytes
    return looked // scene.layers


def write_case(team: Team | None, scene: Scene) -> Case:
    """K rotated and written with V to the slots of the rows; beside a plain copy of as much."""
    ours = bind(team, scene)
    twin = PortableStep(scene.layout, scene.arenas, scene.heads, scene.rotary)
    layers = list(range(scene.layers))
    arms = {"ours": in_turn(lambda n: ours.write(n, scene.qkv, scene.slots), layers)}
    if not isinstance(ours, PortableStep):
        arms["portable"] = in_turn(lambda n: twin.write(n, scene.qkv, scene.slots), layers)
    heads = scene.heads
    kv = scene.qkv[:, heads.heads * heads.dim :].contiguous()
    copies = [torch.empty_like(kv) for _ in layers]
    arms["copy"] = in_turn(lambda to: to.copy_(kv), copies)
    ours.write(0, scene.qkv, scene.slots)
    pages = scene.sequences[0].segments[-1].pages
    keys, values = (x[: scene.of.rows] for x in scene.arenas[OWN].read_rows(0, pages))
    key, value = kv.unflatten(1, (2, heads.kv_heads, heads.dim)).unbind(1)
    exact = rotated(key, torch.from_numpy(scene.rows[0]))
    rounding = relative(exact.to(scene.dtype), exact)
    error = relative(keys, exact) if torch.equal(values, value) else float("inf")
    return Case(
        "write", scene.of.size, name_of(scene.dtype), arms, 2 * bytes_of(kv),
        error=error, torch_error=rounding, limit=1.1 * rounding + 1e-6,
    )  # fmt: skip


def weights_case(team: Team | None, scene: Scene, pages: str) -> Case:
    """Where the rows look, summed over rows with a vote each, as a probe wants it.

    Beside the twin and one explicit softmax over ready keys. Of the C kernels the matrix itself.
    """
    sequence, query = scene.sequences[0], scene.queries(0)
    given = scene.arenas, scene.heads, scene.rotary
    twin = PortableWeights(sequence, *given)
    ours: Any = twin
    if team is not None:
        ours = CompiledWeights.bind(team, scene.layout, *given)
    elif runs_triton(scene.device):
        from chunkcache_kernels.triton_weights import TritonWeights

        ours = TritonWeights.bind(scene.layout, *given)
    ready, kv, _ = scene.for_torch()
    kv_heads, rows = scene.heads.kv_heads, len(query)
    grouped = ready[0].float().reshape(kv_heads, -1, scene.heads.dim)
    hidden = scene.mask()[0, 0].float()
    votes = torch.full((rows,), 1 / rows, device=scene.device)

    def explicit(layer: torch.Tensor) -> torch.Tensor:
        scores = grouped @ layer[0, 0].float().transpose(1, 2) * scene.heads.scale
        weights = (scores.unflatten(1, (-1, rows)) + hidden).softmax(-1).mean((0, 1))
        return votes @ weights

    exact = votes.double() @ scene.exact_weights(0).mean((0, 1))
    torch_error = relative(explicit(kv[0]), exact)
    layers = list(range(scene.layers))
    arms = {"ours": in_turn(lambda n: ours.received(n, query, votes), layers)}
    if ours is not twin:
        arms["portable"] = in_turn(lambda n: twin.received(n, query, votes), layers)
    arms["torch"] = in_turn(explicit, list(kv))
    return Case(
        "received", scene.of.size, pages, arms, _page_bytes(scene) // 2 + bytes_of(query),
        flops=2 * scene.heads.heads * scene.heads.dim * int(scene.sees(0).sum()),
        error=relative(ours.received(0, query, votes), exact), torch_error=torch_error,
        limit=2 * torch_error + 5e-7,
    )  # fmt: skip
