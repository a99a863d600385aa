"""Rotary placement, paged row attention and attention statistics; Triton and its torch twins.

Every function has a torch reference in `reference.py`; `dispatch.py` says which one runs.
"""

from __future__ import annotations

from chunkcache_kernels.reference import (
    attention_mass,
    attention_received,
    gather_kv,
    paged_rows_attention,
    place_kv,
    rotate,
    rows_attention,
)

__all__ = [
    "attention_mass",
    "attention_received",
    "gather_kv",
    "paged_rows_attention",
    "place_kv",
    "rotate",
    "rows_attention",
]
