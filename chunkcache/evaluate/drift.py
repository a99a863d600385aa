"""How far one next-token distribution is from another. Pure functions of logits, in fp32 or better.

Drift is always measured against full recompute of the same prompt, never guessed from KV: KV
deviation does not predict what happens to answers (docs/concepts/repair.md has the evidence).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chunkcache.cores import one_core
from chunkcache.errors import NotFinite


@dataclass(frozen=True, slots=True)
class Drift:
    """Distances between two sequences of next-token distributions over the same continuation."""

    first_kl: float  # nats, at the first token of the answer
    mean_kl: float  # nats, mean over the continuation
    agreement: float  # share of positions where both rank the same token first


def kl_divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ other) in nats, from logits `[..., vocab]`; fp64, never negative.

    Σ p·(log p − log q): 0 when equal, large when `other` rules out what `reference` expects.
    """
    p = torch.log_softmax(reference.double(), dim=-1)
    q = torch.log_softmax(other.double(), dim=-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)


def drift_between(reference: torch.Tensor, other: torch.Tensor) -> Drift:
    """Drift of `other` from `reference`, both logits `[steps, vocab]` at the same tokens.

    Raises:
        ValueError: the shapes differ or there is no step.
        NotFinite: the logits are no finite numbers, so that there is no distance.
    """
    if reference.shape != other.shape or reference.dim() != 2 or reference.shape[0] == 0:
        raise ValueError(f"logits of shapes {tuple(reference.shape)} and {tuple(other.shape)}")
    with one_core():  # the engine may be running
        if not bool(reference.isfinite().all() and other.isfinite().all()):
            raise NotFinite.of("logits")
        kl = kl_divergence(reference, other)
        same = (reference.argmax(-1) == other.argmax(-1)).double()
        return Drift(float(kl[0]), float(kl.mean()), float(same.mean()))
