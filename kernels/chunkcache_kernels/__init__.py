"""Rotary placement, paged row attention and attention statistics; Triton and its torch twins.

Every function has a torch reference in `reference.py`; `dispatch.py` says which one runs.
"""

from __future__ import annotations

from chunkcache_kernels.dispatch import (
    gather_kv,
    paged_rows_attention,
    place_kv,
    plan_rows,
    rotate,
    rows_attention,
)
from chunkcache_kernels.mass import attention_mass, attention_received
from chunkcache_kernels.plan import RowPlan

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
