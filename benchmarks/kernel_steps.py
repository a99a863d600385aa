"""Attention over pages beside torch's own: rows of sequences that read chunks, and rows of theirs.

Chunks of 512 tokens come first in a prompt, then tokens of its own. Rows that repair recomputes
stand in chunks and hide the chunks' rows there. torch gets the same keys and values in one piece,
keys already rotated to where they stand, a copy for each sequence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from kernel_cases import Case, bytes_of, in_turn, name_of, relative
from kernel_scene import OWN, PAGE, Prompts, Scene, rotated
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from chunkcache_kernels import Heads, Layout, PortableStep, PortableWeights, fours, lay_out
from chunkcache_kernels.compiled import CompiledStep, CompiledWeights, Team
from chunkcache_kernels.head_lists import Kind, PortableHeads, streamed

INT4 = fours.PAGE_TYPE
ROUNDED = (torch.int8, INT4)
SINKS, RECENT = 64, 256  # positions that streaming heads see: DuoAttention's for Llama-3-8B


@dataclass(frozen=True, slots=True)
class Sizes:
    """Heads of a model, and what is measured of them."""

    heads: Heads
    attended: tuple[Prompts, ...]
    weighed: tuple[Prompts, ...]
    by_head: tuple[Prompts, ...]  # half of the key heads stream
    page_types: tuple[torch.dtype, ...]


MODELS = {
    "SmolLM2-135M": Sizes(
        Heads(9, 3, 64, 64**-0.5, 64),
        (Prompts("decode", 1, 2), Prompts("decode", 1, 8), Prompts("shared", 1, 10, sequences=16),
         Prompts("question", 32, 8), Prompts("repair", 128, 8, scattered=True),
         Prompts("repair", 512, 8, scattered=True),
         Prompts("prefill", 512, 0, own=512), Prompts("prefill", 512, 0, own=4096)),
        (Prompts("question", 32, 8), Prompts("capture", 512, 0, own=560)),
        (Prompts("by head", 1, 8),),
        (torch.float32, torch.bfloat16, torch.int8),
    ),
    "Llama-3-8B": Sizes(
        Heads(32, 8, 128, 128**-0.5, 128),
        (Prompts("decode", 1, 16), Prompts("decode", 1, 16, sequences=8, shares=False, flexes=True),
         Prompts("decode", 1, 64, sequences=8, shares=False),
         Prompts("shared", 1, 16, sequences=32), Prompts("question", 32, 16),
         Prompts("repair", 384, 16, scattered=True),
         Prompts("prefill", 512, 16, own=512, flexes=True)),
        (Prompts("question", 32, 16), Prompts("capture", 512, 0, own=560)),
        (Prompts("by head", 1, 16, sequences=8, shares=False),),
        (torch.bfloat16, torch.int8, INT4),
    ),
}  # fmt: skip


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
) -> Iterator[tuple[str, Callable[[], Case]]]:
    """All cases of chunks' pages of one number type, made one at a time."""
    sizes = MODELS[model]
    heads, rows = sizes.heads, pages
    if pages in ROUNDED:
        rows = torch.bfloat16 if device.type == "cuda" else torch.float32
    kinds = [(attend_case, of) for of in sizes.attended]
    kinds += [(write_case, Prompts("write", 512, 0, own=512))]
    kinds += [(weights_case, of) for of in sizes.weighed]
    kinds += [(by_head_case, of) for of in sizes.by_head if pages not in ROUNDED]
    for make, of in kinds:
        if pages is INT4 and of.what != "decode":
            continue  # where bytes decide; each kernel more takes seconds to compile
        if of.chunks or pages not in ROUNDED:
            # the C kernels know no pages of 4 bits: there torch is all there is
            on = None if pages is INT4 else team
            scene = partial(Scene, of, pages, rows, device, heads)
            yield f"{of.size} {name_of(pages)}", partial(_made, make, on, scene, name_of(pages))


def _made(
    make: Callable[..., Case], team: Team | None, scene: Callable[[], Scene], pages: str
) -> Case:
    return make(team, scene(), pages)


def attend_case(team: Team | None, scene: Scene, pages: str) -> Case:
    """Attention of a bound step, beside the twin and one call of torch's with the mask ready."""
    ours = bind(team, scene)
    twin = PortableStep(scene.layout, scene.arenas, scene.heads, scene.rotary)
    query, kv, mask = scene.for_torch()
    by_torch = partial(_by_torch, query, mask, scene.heads.scale)
    exact = scene.exact()
    torch_error = relative(_in_rows(by_torch(kv[0])), exact)
    layers: Sequence[int] = range(scene.layers)
    arms = {"ours": in_turn(partial(_attend, ours, scene.qkv), list(layers))}
    if not isinstance(ours, PortableStep) and scene.device.type == "cpu":
        arms["portable"] = in_turn(partial(_attend, twin, scene.qkv), list(layers))
    arms["torch"] = in_turn(by_torch, list(kv))
    if scene.device.type == "cuda" and scene.of.flexes and pages not in {"int8", "int4"}:
        arms |= {"flex": in_turn(by_flex(scene, query), list(kv))}
    seen = sum(int(scene.sees(n).sum()) for n in range(scene.of.sequences))
    return Case(
        "attend", scene.of.size, pages, arms,
        _page_bytes(scene, scene.layout) + 2 * bytes_of(query),
        flops=4 * scene.heads.heads * scene.heads.dim * seen,
        error=relative(ours.attend(0, scene.qkv), exact),
        torch_error=torch_error, limit=2 * torch_error + 5e-7,
    )  # fmt: skip


def by_head_case(team: Team | None, scene: Scene, pages: str) -> Case:
    """Half of the key heads look at everything, half at the first and last keys; beside torch's
    attention of all heads over everything. The C kernels know one list of pages only.
    """
    heads, given = scene.heads, (scene.arenas, scene.heads, scene.rotary)
    streaming = range(heads.kv_heads // 2, heads.kv_heads)
    near = [streamed(s, first=SINKS, last=RECENT) for s in scene.sequences]
    short = lay_out(near, page_tokens=PAGE, group=heads.heads // heads.kv_heads)
    kinds = [Kind(tuple(range(streaming.start)), scene.layout), Kind(tuple(streaming), short)]
    ours: Any = PortableHeads.bind(kinds, *given)
    if runs_triton(scene.device):
        from chunkcache_kernels.triton_heads import TritonHeads

        ours = TritonHeads.bind(kinds, *given)
    query, kv, mask = scene.for_torch()
    by_torch = partial(_by_torch, query, mask, heads.scale)
    torch_error = relative(_in_rows(by_torch(kv[0])), scene.exact())
    exact, seen, keys = [], 0, torch.arange(scene.of.tokens, device=scene.device)
    for number, rows in enumerate(scene.rows):
        weights, sees = scene.exact_weights(number), scene.sees(number)
        kept = sees & ((keys < SINKS) | (keys >= int(rows[0]) - RECENT))
        weights[streaming.start :] *= kept
        weights /= weights.sum(-1, keepdim=True)
        mixed = torch.einsum("kgrt,tkd->rkgd", weights, scene.values[number])
        exact.append(mixed.flatten(1))
        seen += int(sees.sum()) * streaming.start + int(kept.sum()) * len(streaming)
    moved = [_page_bytes(scene, kind.layout) * len(kind.kv_heads) for kind in kinds]
    layers = list(range(scene.layers))
    return Case(
        "attend", scene.of.size, pages,
        {"ours": in_turn(partial(_attend, ours, scene.qkv), layers),
         "torch": in_turn(by_torch, list(kv))},
        sum(moved) // heads.kv_heads + 2 * bytes_of(query),
        flops=4 * heads.heads * heads.dim * seen // heads.kv_heads,
        error=relative(ours.attend(0, scene.qkv), torch.cat(exact)),
        torch_error=torch_error, limit=2 * torch_error + 5e-7,
    )  # fmt: skip


def _by_torch(query: torch.Tensor, mask: Any, scale: float, layer: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, layer[0], layer[1], attn_mask=mask, scale=scale, enable_gqa=True
    )


def _in_rows(answer: torch.Tensor) -> torch.Tensor:
    """`[rows of all, heads · dim]` of `[sequences, heads, rows, dim]`."""
    return answer.transpose(1, 2).flatten(2).flatten(0, 1)


def by_flex(scene: Scene, query: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """FlexAttention, compiled, with blocks that nobody sees left out; made when it is first run."""
    at, of = torch.from_numpy(np.stack(scene.rows)).to(scene.device), scene.of

    def sees(batch: Any, head: Any, row: Any, key: Any) -> Any:
        return key <= at[batch, row]

    @cache
    def blocks() -> Any:
        sizes = of.sequences, None, of.rows, of.tokens
        return create_block_mask(sees, *sizes, device=scene.device)

    compiled = torch.compile(flex_attention)

    def attend(layer: torch.Tensor) -> Any:
        return compiled(query, layer[0], layer[1], block_mask=blocks(), scale=scene.heads.scale,
                        enable_gqa=True)  # fmt: skip

    return attend


def _attend(step: Any, qkv: torch.Tensor, layer: int) -> torch.Tensor:
    return step.attend(layer, qkv)


def _page_bytes(scene: Scene, layout: Layout) -> int:
    """Bytes of the pages of one layer that some row looks at, each counted once."""
    looked = 0
    for arena, first, count in layout.runs.tolist():
        pages = len(np.unique(layout.pages[first : first + count]))
        looked += pages * scene.arenas[arena].page_bytes
    return looked // scene.layers


def write_case(team: Team | None, scene: Scene, pages: str) -> Case:
    """K rotated and written with V to the slots of the rows; beside a plain copy of as much."""
    ours = bind(team, scene)
    twin = PortableStep(scene.layout, scene.arenas, scene.heads, scene.rotary)
    layers = list(range(scene.layers))
    arms = {"ours": in_turn(lambda n: ours.write(n, scene.qkv, scene.slots), layers)}
    if not isinstance(ours, PortableStep) and scene.device.type == "cpu":
        arms["portable"] = in_turn(lambda n: twin.write(n, scene.qkv, scene.slots), layers)
    heads = scene.heads
    kv = scene.qkv[:, heads.heads * heads.dim :].contiguous()
    copies = [torch.empty_like(kv) for _ in layers]
    arms["copy"] = in_turn(lambda to: to.copy_(kv), copies)
    ours.write(0, scene.qkv, scene.slots)
    own = scene.sequences[0].segments[-1].pages
    keys, values = (x[: scene.of.rows] for x in scene.arenas[OWN].read_rows(0, own))
    key, value = kv.unflatten(1, (2, heads.kv_heads, heads.dim)).unbind(1)
    exact = rotated(key, torch.from_numpy(scene.rows[0]))
    rounding = relative(exact.to(scene.dtype), exact)
    error = relative(keys, exact) if torch.equal(values, value) else float("inf")
    return Case(
        "write", scene.of.size, pages, arms, 2 * bytes_of(kv),
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
    if ours is not twin and scene.device.type == "cpu":
        arms["portable"] = in_turn(lambda n: twin.received(n, query, votes), layers)
    arms["torch"] = in_turn(explicit, list(kv))
    return Case(
        "received", scene.of.size, pages, arms,
        _page_bytes(scene, scene.layout) // 2 + bytes_of(query),
        flops=2 * scene.heads.heads * scene.heads.dim * int(scene.sees(0).sum()),
        error=relative(ours.received(0, query, votes), exact), torch_error=torch_error,
        limit=2 * torch_error + 5e-7,
    )  # fmt: skip
