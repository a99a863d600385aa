"""Attention over pages: C kernels for the CPU, Triton for CUDA, torch as the twin of both."""

from __future__ import annotations

from chunkcache_kernels.arena import HIDDEN, Arena, Segment
from chunkcache_kernels.layout import Layout, SequenceLayout, lay_out
from chunkcache_kernels.portable import Heads, PortableStep, Rotary, attention_weights
from chunkcache_kernels.rotary import turned

__all__ = [
    "HIDDEN",
    "Arena",
    "Heads",
    "Layout",
    "PortableStep",
    "Rotary",
    "Segment",
    "SequenceLayout",
    "attention_weights",
    "lay_out",
    "turned",
]
