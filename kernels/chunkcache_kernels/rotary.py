"""RoPE in torch, half-split layout, multiplied in fp32.

Source: RoFormer, arXiv 2104.09864, eq. 34, in the layout Hugging Face models use.
"""

from __future__ import annotations

import torch


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x` `[T, H, D]` turned by fp32 `cos`, `sin` `[T, rotary_dim]` → fp32 `[T, H, D]`.

    The first `rotary_dim` channels of a head are turned, the others only widened. Not cast back:
    rounding the angles or the products to bf16 costs accuracy.
    """
    width = cos.shape[-1]
    half = width // 2
    wide = x.float()
    part = wide[..., :width]
    swapped = torch.cat((-part[..., half:], part[..., :half]), dim=-1)
    rotated = part * cos[:, None] + swapped * sin[:, None]
    return rotated if width == x.shape[-1] else torch.cat((rotated, wide[..., width:]), dim=-1)
