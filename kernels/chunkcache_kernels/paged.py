"""Triton: collect the keys and values of scattered slots. Twin: `gather_kv` in `reference.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from chunkcache_kernels.strides import check_pools

_TOKENS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _gather_kernel(  # type: ignore[no-untyped-def]
    k_pool, v_pool, slots, k_out, v_out, num_tokens, stride_ks, stride_kh, stride_vs, stride_vh,
    DIM: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    cols = tl.arange(0, WIDTH_PADDED)
    inside = tokens < num_tokens
    slot = tl.load(slots + tokens, mask=inside, other=0)
    fits = inside[:, None] & (cols < WIDTH)[None, :]
    to = tokens[:, None] * WIDTH + cols[None, :]
    head, col = (cols // DIM)[None, :], (cols % DIM)[None, :]
    keys = tl.load(k_pool + slot[:, None] * stride_ks + head * stride_kh + col, mask=fits)
    tl.store(k_out + to, keys, mask=fits)
    values = tl.load(v_pool + slot[:, None] * stride_vs + head * stride_vh + col, mask=fits)
    tl.store(v_out + to, values, mask=fits)


def gather_kv(
    k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [T, Hkv, D] at `slots` int64 [T], all valid, of pools [S, Hkv, D].

    Cost: T keys and values read and written once; one launch for both.
    """
    num_heads, dim = k_pool.shape[1:]
    assert slots.dim() == 1 and slots.dtype == torch.int64
    assert v_pool.shape[1:] == (num_heads, dim)
    check_pools(k_pool, v_pool)
    slots = slots.contiguous()
    shape = (slots.shape[0], num_heads, dim)
    k_out = torch.empty(shape, dtype=k_pool.dtype, device=k_pool.device)
    v_out = torch.empty(shape, dtype=v_pool.dtype, device=v_pool.device)
    if slots.shape[0] == 0:
        return k_out, v_out
    width = num_heads * dim
    _gather_kernel[(triton.cdiv(slots.shape[0], _TOKENS),)](
        k_pool, v_pool, slots, k_out, v_out, slots.shape[0],
        k_pool.stride(0), k_pool.stride(1), v_pool.stride(0), v_pool.stride(1),
        DIM=dim, WIDTH=width, WIDTH_PADDED=triton.next_power_of_2(width), TOKENS=_TOKENS,
    )  # fmt: skip
    return k_out, v_out
