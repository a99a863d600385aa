"""Chunks on their way to and from a device: codec bytes to pages, KV to codec bytes, the choice of
rows. Beside torch's own way and a plain copy of as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from kernel_cases import Case, bytes_of, cold_copies, in_turn, name_of
from kernel_scene import CHUNK, PAGE, angles
from kernel_steps import runs_triton

from chunkcache_kernels import Arena, Heads, choice, records
from chunkcache_kernels.records import Form

LAYERS = 8  # that come up together
GROUP = 64
SCORES = (8, 32768)  # rows, and scores of each


def record_cases(heads: Heads, device: torch.device) -> Iterator[tuple[str, Callable[[], Case]]]:
    """One case at a time."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for bits in (0, 8, 4):
        form = Form(CHUNK, heads.kv_heads, heads.dim, dtype, bits, GROUP if bits else 0)
        for pages in (dtype, torch.int8):
            name = f"promote {_coding(form)} to {name_of(pages)}"
            yield name, partial(promote_case, form, pages, device)
        if bits:
            yield f"quantise {_coding(form)}", partial(quantise_case, form, device)
    yield "topk", partial(topk_case, device)


def _coding(form: Form) -> str:
    return f"int{form.bits}" if form.bits else "raw"


def _size(form: Form) -> str:
    return f"{_coding(form)}, {LAYERS} layers of {form.tokens} tokens"


def promote_case(form: Form, pages: torch.dtype, device: torch.device) -> Case:
    """Layers of a chunk from bytes to pages."""
    kv = torch.randn(LAYERS, 2, form.tokens, form.heads, form.dim, device=device).to(form.dtype)
    coded = records.quantise(kv, form) if form.bits else kv.view(torch.uint8).view(LAYERS, -1)
    rotary = angles(form.tokens, form.dim, device)
    turned = rotary.cos, rotary.sin
    count = form.tokens // PAGE
    ours: Callable[..., None] = records.promote
    if runs_triton(device):
        from chunkcache_kernels import triton_records

        ours = triton_records.promote
    copies = cold_copies(bytes_of(kv))
    sizes = LAYERS, count * copies, form.heads, form.dim, PAGE
    arena, twin = (Arena.empty(*sizes, dtype=pages, device=device) for _ in range(2))
    runs = [np.arange(n * count, (n + 1) * count, dtype=np.int64) for n in range(copies)]
    arms: dict[str, Callable[[], Any]] = {
        "ours": in_turn(lambda to: ours(arena, 0, coded, form, to, turned), runs)
    }
    if ours is not records.promote:
        arms["portable"] = in_turn(
            lambda to: records.promote(twin, 0, coded, form, to, turned), runs
        )
    written = count * arena.page_bytes
    arms["copy"] = _copying((bytes_of(coded) + written) // 2, device)
    for run in runs[:1]:
        ours(arena, 0, coded, form, run, turned)
        records.promote(twin, 0, coded, form, run, turned)
    same = torch.equal(arena.keys[:, :count], twin.keys[:, :count])
    same &= torch.equal(arena.values[:, :count], twin.values[:, :count])
    return Case(
        "promote", _size(form), name_of(pages), arms,
        bytes_of(coded) + written, error=0.0 if same else 1.0,
    )  # fmt: skip


def quantise_case(form: Form, device: torch.device) -> Case:
    """Layers of a chunk to the bytes of its record."""
    kv = torch.randn(LAYERS, 2, form.tokens, form.heads, form.dim, device=device).to(form.dtype)
    ours = records.quantise
    if runs_triton(device):
        from chunkcache_kernels import triton_records

        ours = triton_records.quantise
    given = [kv.clone() for _ in range(cold_copies(bytes_of(kv)))]
    arms: dict[str, Callable[[], Any]] = {"ours": in_turn(lambda x: ours(x, form), given)}
    if ours is not records.quantise:
        arms["portable"] = in_turn(lambda x: records.quantise(x, form), given)
    moved = bytes_of(kv) + LAYERS * form.layer_bytes
    arms["copy"] = _copying(moved // 2, device)
    same = torch.equal(ours(kv, form), records.quantise(kv, form))
    return Case(
        "quantise", _size(form), name_of(form.dtype),
        arms, moved, error=0.0 if same else 1.0,
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
    same = torch.equal(ours(scores, counts, most), arms["torch"]().int())
    return Case(
        "topk", f"{most} of {columns} scores, {rows} rows", "float32", arms, bytes_of(scores),
        error=0.0 if same else 1.0,
    )  # fmt: skip


def _copying(size_bytes: int, device: torch.device) -> Callable[[], Any]:
    """Reads and writes as many bytes each."""
    copies = cold_copies(2 * size_bytes)
    pairs = [torch.zeros(2, size_bytes, dtype=torch.uint8, device=device) for _ in range(copies)]
    return in_turn(lambda pair: pair[1].copy_(pair[0]), pairs)
