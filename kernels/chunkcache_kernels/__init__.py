"""Rotary placement, row attention over slots and attention statistics, in torch.

Attention over pages has modules of its own: `compiled.py`, `triton_pages.py`, `portable.py`.
"""

from __future__ import annotations

from chunkcache_kernels.dispatch import plan_rows
from chunkcache_kernels.mass import attention_mass, attention_received
from chunkcache_kernels.plan import RowPlan
from chunkcache_kernels.reference import (
    gather_kv,
    paged_rows_attention,
    place_kv,
    rotate,
    rows_attention,
)

__all__ = [
    "RowPlan",
    "attention_mass",
    "attention_received",
    "gather_kv",
    "paged_rows_attention",
    "place_kv",
    "plan_rows",
    "rotate",
    "rows_attention",
]
