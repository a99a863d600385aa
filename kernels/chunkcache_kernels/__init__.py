"""Attention over pages: C kernels for the CPU, Triton for CUDA, torch as the twin of both."""

from __future__ import annotations

from chunkcache_kernels.arena import HIDDEN, Arena, Segment
from chunkcache_kernels.layout import Layout, SequenceLayout, lay_out
from chunkcache_kernels.portable import Heads, PortableStep, PortableWeights, Rotary
from chunkcache_kernels.rotary import turned

__all__ = [
    "HIDDEN",
    "Arena",
    "Heads",
    "Layout",
    "PortableStep",
    "PortableWeights",
    "Rotary",
    "Segment",
    "SequenceLayout",
    "lay_out",
    "turned",
]
