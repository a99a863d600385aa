"""The JSON that requests are made of, by theme: what is accepted, and nothing else."""

from __future__ import annotations
