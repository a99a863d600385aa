"""Chunks on their way to and from a device: codec bytes to pages, KV to codec bytes, the choice of
rows. Beside torch's own way and a plain copy of as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from kernel_cases import Case, bytes_of, cold_copies, in_turn, name_of, relative
from kernel_scene import CHUNK, PAGE, angles
from kernel_steps import runs_triton

from chunkcache_kernels import Arena, Heads, choice, fours, records
from chunkcache_kernels.records import Form

GROUP = 64
# torch may divide by a number by multiplying with its inverse: scales and codes are then others
LIMITS = {torch.int8: 1e-3, fours.PAGE_TYPE: 5e-3}
SCORES = (8, 32768)  # rows, and scores of each


def record_cases(heads: Heads, device: torch.device) -> Iterator[tuple[str, Callable[[], Case]]]:
    """One case at a time."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    # a GPU is done with a small chunk before the next launch has come
    tokens = 8 * CHUNK if on_gpu else CHUNK
    for bits in (0, 8, 4):
        form = Form(tokens, heads.kv_heads, heads.dim, dtype, bits, GROUP if bits else 0)
        for pages in (dtype, torch.int8, fours.PAGE_TYPE):
            name = f"promote {_coding(form)} to {name_of(pages)}"
            yield name, partial(promote_case, form, pages, device)
        if bits:
            yield f"quantise {_coding(form)}", partial(quantise_case, form, device)
    yield "topk", partial(topk_case, device)


def _coding(form: Form) -> str:
    return f"int{form.bits}" if form.bits else "raw"


def _size(form: Form, layers: int) -> str:
    return f"{_coding(form)}, {layers} layers of {form.tokens} tokens"


def _drawn(form: Form, device: torch.device) -> torch.Tensor:
    """K before RoPE and V of as many layers as come up together."""
    layers = 32 if device.type == "cuda" else 8
    shape = layers, 2, form.tokens, form.heads, form.dim
    return torch.randn(shape, device=device).to(form.dtype)


def promote_case(form: Form, pages: torch.dtype, device: torch.device) -> Case:
    """Layers of a chunk from bytes to pages."""
    kv = _drawn(form, device)
    layers = len(kv)
    coded = records.quantise(kv, form) if form.bits else kv.view(torch.uint8).view(layers, -1)
    rotary = angles(form.tokens, form.dim, device)
    turned = rotary.cos, rotary.sin
    ours: Callable[..., None] = records.promote
    if runs_triton(device):
        from chunkcache_kernels import triton_records

        ours = triton_records.promote
    count, copies = form.tokens // PAGE, cold_copies(bytes_of(kv))
    sizes = form.heads, form.dim, PAGE
    arena = Arena.empty(layers, count * copies, *sizes, dtype=pages, device=device)
    twin = Arena.empty(layers, count, *sizes, dtype=pages, device=device)
    runs = [np.arange(n * count, (n + 1) * count, dtype=np.int64) for n in range(copies)]
    for run, to in ((ours, arena), (records.promote, twin)):
        run(to, 0, coded, form, runs[0], turned)
    arms: dict[str, Callable[[], Any]] = {
        "ours": in_turn(lambda to: ours(arena, 0, coded, form, to, turned), runs)
    }
    if ours is not records.promote and device.type == "cpu":
        arms["portable"] = lambda: records.promote(twin, 0, coded, form, runs[0], turned)
    moved = bytes_of(coded) + count * arena.page_bytes
    arms["copy"] = _copying(moved // 2, device)
    rows = [torch.cat(of.read_rows(layers - 1, runs[0])).float() for of in (arena, twin)]
    return Case(
        "promote", _size(form, layers), name_of(pages), arms, moved,
        error=relative(rows[0], rows[1].double()), limit=LIMITS.get(pages, 0.0),
        is_captured=False,
    )  # fmt: skip


def quantise_case(form: Form, device: torch.device) -> Case:
    """Layers of a chunk to the bytes of its record."""
    kv = _drawn(form, device)
    ours = records.quantise
    if runs_triton(device):
        from chunkcache_kernels import triton_records

        ours = triton_records.quantise
    given = [kv.clone() for _ in range(cold_copies(bytes_of(kv)))]
    arms: dict[str, Callable[[], Any]] = {"ours": in_turn(lambda x: ours(x, form), given)}
    if ours is not records.quantise and device.type == "cpu":
        arms["portable"] = in_turn(lambda x: records.quantise(x, form), given)
    moved = bytes_of(kv) + len(kv) * form.layer_bytes
    arms["copy"] = _copying(moved // 2, device)
    errors = [
        relative(records.decoded(quantise(kv[:1], form), form), kv[:1].double())
        for quantise in (ours, records.quantise)
    ]
    return Case(
        "quantise", _size(form, len(kv)), name_of(form.dtype), arms, moved,
        error=errors[0], torch_error=errors[1], limit=1.01 * errors[1],
    )  # fmt: skip


def topk_case(device: torch.device) -> Case:
    """15 % of each row's scores, in the order of their places."""
    rows, columns = SCORES
    scores = torch.randn(rows, columns, device=device)
    most = columns * 15 // 100
    counts = torch.full((rows,), most, dtype=torch.int32, device=device)
    ours = choice.topk_rows
    if runs_triton(device):
        from chunkcache_kernels import triton_choice

        ours = triton_choice.topk_rows
    arms: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(scores, counts, most),
        "torch": lambda: scores.topk(most).indices.sort().values,
    }
    same = torch.equal(ours(scores, counts, most), choice.topk_rows(scores, counts, most))
    return Case(
        "topk", f"{most} of {columns} scores, {rows} rows", "float32", arms, bytes_of(scores),
        error=0.0 if same else 1.0,
    )  # fmt: skip


def _copying(size_bytes: int, device: torch.device) -> Callable[[], Any]:
    """Reads and writes as many bytes each."""
    copies = cold_copies(2 * size_bytes)
    pairs = [torch.zeros(2, size_bytes, dtype=torch.uint8, device=device) for _ in range(copies)]
    return in_turn(lambda pair: pair[1].copy_(pair[0]), pairs)
