"""Which kernel runs: Triton on CUDA tensors, else torch. Decided per call from its arguments.

`backend` overrides the choice: "torch" anywhere; "triton" on CUDA, or on CPU under Triton's
interpreter (TRITON_INTERPRET=1 before triton is imported), which is how the kernels are tested
without a GPU. Triton is an optional import: without it torch does everything.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Literal, TypeAlias

from chunkcache_kernels import products, reference
from chunkcache_kernels.plan import RowBlock, RowPlan, check_rows, contiguous_run, cut_rows

if TYPE_CHECKING:
    import torch

Backend: TypeAlias = Literal["torch", "triton"]


@functools.cache
def triton_installed() -> bool:
    """Whether `import triton` can succeed; nothing is imported."""
    return importlib.util.find_spec("triton") is not None


def choose_backend(device: torch.device, head_dim: int, wanted: Backend | None = None) -> Backend:
    """The backend for tensors on `device` with heads of `head_dim`.

    Raises:
        ValueError: "triton" is wanted where it cannot run.
    """
    if wanted == "torch" or (wanted is None and device.type != "cuda"):
        return "torch"
    if not triton_installed():
        if wanted is None:
            return "torch"
        raise ValueError(
            "backend: got 'triton', but triton is not installed. Hint: pip install triton (Linux), "
            "or leave backend out."
        )
    from chunkcache_kernels.rope import HEAD_DIMS, interpreted

    if wanted is None:
        return "triton" if head_dim in HEAD_DIMS else "torch"
    if head_dim not in HEAD_DIMS:
        raise ValueError(
            f"head_dim: got {head_dim}, the Triton kernels are made for "
            f"{', '.join(map(str, HEAD_DIMS))}. Hint: leave backend out."
        )
    if device.type != "cuda" and not interpreted():
        raise ValueError(
            f"backend: got 'triton' for tensors on {device.type!r}, it needs 'cuda'. Hint: set "
            "TRITON_INTERPRET=1 before triton is imported to run the kernels on CPU, slowly."
        )
    return "triton"


def plan_rows(
    q_positions: torch.Tensor,
    slots: torch.Tensor,
    *,
    like: torch.Tensor,
    num_heads: int,
    backend: Backend | None = None,
) -> RowPlan:
    """Resolve one sequence's rows once, for all layers of a step.

    Args:
        q_positions: int64 [R], R ≥ 1, strictly increasing, not negative.
        slots: int64, at least last position + 1 long: the key of position p is at `slots[p]`.
        like: a key pool [S, Hkv, D]; says device, number type and key heads.
        num_heads: query heads.

    Raises:
        ValueError: no rows, positions out of order, or fewer slots than positions.

    Cost: where torch's own attention will run, R · T · num_heads / Hkv numbers for masks.
    """
    context = check_rows(q_positions, slots)
    read, write = slots[:context], slots[q_positions]
    read_run, write_run = contiguous_run(read), contiguous_run(write)
    device, dtype = like.device, like.dtype
    blocks: tuple[RowBlock, ...] = ()
    if choose_backend(device, like.shape[-1], backend) == "torch":
        group = num_heads // like.shape[1]
        masked = not products.pay(device, dtype, q_positions.shape[0] * group, context)
        blocks = cut_rows(
            q_positions, dtype=dtype, device=device, mask_group=group if masked else 0
        )
    return RowPlan(
        q_positions=q_positions.to(device),
        slots=read.to(device),
        context=context,
        read=read.to(device) if read_run is None else read_run,
        write=write.to(device) if write_run is None else write_run,
        blocks=blocks,
    )


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, backend: Backend | None = None
) -> torch.Tensor:
    """RoPE of `x` [T, H, D] by fp32 `cos`, `sin` [T, D]; see `reference.rotate`."""
    if choose_backend(x.device, x.shape[-1], backend) == "torch":
        return reference.rotate(x, cos, sin)
    from chunkcache_kernels import rope

    return rope.rotate(x, cos, sin)


def place_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor | slice,
    *,
    backend: Backend | None = None,
) -> None:
    """Rotate `k` and write it and `v` to `slots` of the pools; see `reference.place_kv`."""
    if choose_backend(k_pool.device, k.shape[-1], backend) == "torch":
        reference.place_kv(k, v, cos, sin, k_pool, v_pool, slots)
        return
    from chunkcache_kernels import rope

    rope.place_kv(k, v, cos, sin, k_pool, v_pool, slots)


def gather_kv(
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor | slice,
    *,
    backend: Backend | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V at `slots`; see `reference.gather_kv`. A slice gives views, whatever the backend."""
    if isinstance(slots, slice) or (
        choose_backend(k_pool.device, k_pool.shape[-1], backend) == "torch"
    ):
        return reference.gather_kv(k_pool, v_pool, slots)
    from chunkcache_kernels import paged

    return paged.gather_kv(k_pool, v_pool, slots)


def paged_rows_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
    *,
    plan: RowPlan | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Attention of rows over keys in the pools; see `reference.paged_rows_attention`.

    `plan` (of these very rows, made for the same backend) saves every layer the work they share,
    and on CUDA the wait for the last position.
    """
    if choose_backend(q.device, q.shape[-1], backend) == "torch":
        return reference.paged_rows_attention(
            q, k_pool, v_pool, slots, q_positions, scale, plan=plan
        )
    from chunkcache_kernels import attention

    return attention.paged_rows_attention(q, k_pool, v_pool, slots, q_positions, scale, plan=plan)


def rows_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
    *,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Attention of rows over keys that lie in order; see `reference.rows_attention`."""
    if choose_backend(q.device, q.shape[-1], backend) == "torch":
        return reference.rows_attention(q, k, v, q_positions, scale)
    from chunkcache_kernels import attention

    return attention.rows_attention(q, k, v, q_positions, scale)
