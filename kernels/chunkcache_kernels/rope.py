"""Triton: rotate keys in fp32, cast once, and write them to their slots in the same pass.

Twins: `rotate` and `place_kv` in `reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from chunkcache_kernels.strides import check_pools, packed

HEAD_DIMS = (16, 32, 64, 80, 96, 128)
_TOKENS = 32  # per program; a tile of 32 x 64 numbers fills four warps


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    x, cos, sin, tokens, cols, fits,
    stride_x, stride_ct, stride_cd, stride_st, stride_sd, HALF: tl.constexpr,
):  # fmt: skip
    """Both halves of one head's rows after rotation, fp32 [tokens, HALF padded]."""
    at = tokens[:, None] * stride_x + cols[None, :]
    low = tl.load(x + at, mask=fits, other=0.0).to(tl.float32)
    high = tl.load(x + at + HALF, mask=fits, other=0.0).to(tl.float32)
    # angles have strides for both dimensions: one number may stand for all of them (stride 0)
    at = tokens[:, None] * stride_ct + cols[None, :] * stride_cd
    cos_low = tl.load(cos + at, mask=fits, other=0.0)
    cos_high = tl.load(cos + at + HALF * stride_cd, mask=fits, other=0.0)
    at = tokens[:, None] * stride_st + cols[None, :] * stride_sd
    sin_low = tl.load(sin + at, mask=fits, other=0.0)
    sin_high = tl.load(sin + at + HALF * stride_sd, mask=fits, other=0.0)
    return low * cos_low - high * sin_low, high * cos_high + low * sin_high


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(  # type: ignore[no-untyped-def]
    x, cos, sin, out, num_tokens,
    stride_xt, stride_xh, stride_ct, stride_cd, stride_st, stride_sd, stride_ot, stride_oh,
    HALF: tl.constexpr, HALF_PADDED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    cols = tl.arange(0, HALF_PADDED)
    fits = (tokens < num_tokens)[:, None] & (cols < HALF)[None, :]
    low, high = _turn(
        x + head * stride_xh, cos, sin, tokens, cols, fits,
        stride_xt, stride_ct, stride_cd, stride_st, stride_sd, HALF,
    )  # fmt: skip
    to = out + head * stride_oh + tokens[:, None] * stride_ot + cols[None, :]
    tl.store(to, low.to(out.dtype.element_ty), mask=fits)
    tl.store(to + HALF, high.to(out.dtype.element_ty), mask=fits)


@triton.jit  # type: ignore[untyped-decorator]
def _place_kernel(  # type: ignore[no-untyped-def]
    k, v, cos, sin, k_pool, v_pool, slots, first_slot, num_tokens,
    stride_kt, stride_kh, stride_vt, stride_vh, stride_ct, stride_cd, stride_st, stride_sd,
    stride_kps, stride_kph, stride_vps, stride_vph,
    HALF: tl.constexpr, HALF_PADDED: tl.constexpr, TOKENS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    cols = tl.arange(0, HALF_PADDED)
    inside = tokens < num_tokens
    slot = first_slot + tokens if RUN else tl.load(slots + tokens, mask=inside, other=-1)
    fits = (inside & (slot >= 0))[:, None] & (cols < HALF)[None, :]
    low, high = _turn(
        k + head * stride_kh, cos, sin, tokens, cols, fits,
        stride_kt, stride_ct, stride_cd, stride_st, stride_sd, HALF,
    )  # fmt: skip
    to = k_pool + head * stride_kph + slot[:, None] * stride_kps + cols[None, :]
    tl.store(to, low.to(k_pool.dtype.element_ty), mask=fits)
    tl.store(to + HALF, high.to(k_pool.dtype.element_ty), mask=fits)
    source = v + head * stride_vh + tokens[:, None] * stride_vt + cols[None, :]
    to = v_pool + head * stride_vph + slot[:, None] * stride_vps + cols[None, :]
    low = tl.load(source, mask=fits, other=0.0)
    high = tl.load(source + HALF, mask=fits, other=0.0)
    tl.store(to, low.to(v_pool.dtype.element_ty), mask=fits)
    tl.store(to + HALF, high.to(v_pool.dtype.element_ty), mask=fits)


def interpreted() -> bool:
    """Whether the kernels run on Triton's interpreter; settled when triton was imported."""
    return not isinstance(_rotate_kernel, triton.JITFunction)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of `x` [T, H, D] by fp32 `cos`, `sin` [T, D] → contiguous, like `x`."""
    num_tokens, num_heads, dim = x.shape
    _check_angles(cos, sin, num_tokens, dim)
    x = packed(x)
    out = torch.empty((num_tokens, num_heads, dim), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    _rotate_kernel[_grid(num_tokens, num_heads)](
        x, cos, sin, out, num_tokens,
        x.stride(0), x.stride(1), *cos.stride(), *sin.stride(), out.stride(0), out.stride(1),
        **_sizes(dim),
    )  # fmt: skip
    return out


def place_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor | slice,
) -> None:
    """Rotate `k` [T, Hkv, D] and write it and `v` to `slots` of the pools [S, Hkv, D].

    `slots` is int64 [T], −1 skips the row, or the slice they are. Cost: k, v and the angles are
    read once, both pools' rows written once; one launch.
    """
    num_tokens, num_heads, dim = k.shape
    _check_angles(cos, sin, num_tokens, dim)
    assert v.shape == k.shape and k_pool.shape[1:] == v_pool.shape[1:] == k.shape[1:]
    check_pools(k_pool, v_pool)
    k, v = packed(k), packed(v)
    run = isinstance(slots, slice)
    if isinstance(slots, torch.Tensor):
        assert slots.shape == (num_tokens,) and slots.dtype == torch.int64
        slots = slots.contiguous()
    else:
        assert slots.step in (None, 1) and slots.stop - slots.start == num_tokens
        assert slots.start >= 0 and slots.stop <= min(k_pool.shape[0], v_pool.shape[0])
    if num_tokens == 0:
        return
    _place_kernel[_grid(num_tokens, num_heads)](
        k, v, cos, sin, k_pool, v_pool,
        None if run else slots, slots.start if isinstance(slots, slice) else 0, num_tokens,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), *cos.stride(), *sin.stride(),
        k_pool.stride(0), k_pool.stride(1), v_pool.stride(0), v_pool.stride(1),
        RUN=run, **_sizes(dim),
    )  # fmt: skip


def _check_angles(cos: torch.Tensor, sin: torch.Tensor, num_tokens: int, dim: int) -> None:
    for angle in (cos, sin):
        assert angle.shape == (num_tokens, dim) and angle.dtype == torch.float32


def _grid(num_tokens: int, num_heads: int) -> tuple[int, int]:
    return triton.cdiv(num_tokens, _TOKENS), num_heads


def _sizes(dim: int) -> dict[str, Any]:
    half = dim // 2
    return {
        "HALF": half,
        "HALF_PADDED": triton.next_power_of_2(half),
        "TOKENS": _TOKENS,
        "enable_fp_fusion": False,  # the sums are then rounded as torch rounds them
    }
