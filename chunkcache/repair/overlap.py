"""Cache-Craft's overlap algebra: β, γ, β′, CCI, CFO (arXiv 2502.15734, eqs. 3-12).

Pure functions of numbers. Where the equations are silent or 0/0, the choice made is written at the
function. The head of the prompt is never one of the chunks here: it is in every prompt, and its
attention sink would push β to 1 always.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


def overlap(old: Sequence[Hashable], old_inter: Sequence[float], new: Sequence[Hashable]) -> float:
    """β (eq. 6): share of birth-time attention to earlier chunks that went to chunks still here.

    Born alone (`old` empty): 1 if nothing precedes the chunk now either, else 0, because a chunk
    that has seen no context has seen none of the new one.

    >>> overlap(["a", "b"], [3.0, 1.0], ["a"])
    0.75
    """
    if not old:
        return 0.0 if new else 1.0
    total = math.fsum(old_inter)
    if total <= 0.0:
        return len(set(old) & set(new)) / len(set(old))
    here = set(new)
    kept = math.fsum(m for c, m in zip(old, old_inter, strict=True) if c in here)
    return min(1.0, kept / total)


def order_penalty(old: Sequence[Hashable], new: Sequence[Hashable]) -> float:
    """γ (eq. 7): normalised Kendall-tau distance between the orders of the common chunks.

    Of a chunk that occurs twice the first occurrence counts. Fewer than two common chunks: 0.

    >>> order_penalty("abc", "cba")
    1.0
    """
    rank: dict[Hashable, int] = {}
    for index, chunk in enumerate(new):
        rank.setdefault(chunk, index)
    common = [rank[c] for c in dict.fromkeys(old) if c in rank]
    pairs = len(common) * (len(common) - 1) // 2
    if pairs == 0:
        return 0.0
    return sum(a > b for a, b in combinations(common, 2)) / pairs


def novelty(old: Sequence[Hashable], new: Sequence[Hashable], new_lengths: Sequence[int]) -> float:
    """Share of the tokens before the chunk now that were not before it at birth (our addition).

    β alone gives S_old={A}, S_new={A,B,C,D} full marks; the new chunks are charged for here.
    """
    total = sum(new_lengths)
    if total == 0:
        return 0.0
    known = set(old)
    return sum(n for c, n in zip(new, new_lengths, strict=True) if c not in known) / total


def adjusted_overlap(beta: float, gamma: float, unseen: float = 0.0) -> float:
    """β′ = β·(1−γ) (eq. 8), times the share of the new prefix that is not novel."""
    return beta * (1.0 - gamma) * (1.0 - unseen)


def context_impact(
    inter: Sequence[float], prior_lengths: Sequence[int], intra: float, num_tokens: int
) -> float:
    """CCI = 1/(1+exp(−ā/b̄)) (eqs. 9-11), from 0.5: how much the chunk looked outside itself.

    ā = Σ_j inter_j/(|C|·|C_j|) and b̄ = intra/|C|², on masses already averaged over layers. Born
    alone, ā = 0 and CCI is 0.5: no evidence either way. It stays below 1, except by rounding, and
    where b̄ = 0.
    """
    a = math.fsum(m / (num_tokens * n) for m, n in zip(inter, prior_lengths, strict=True))
    b = intra / num_tokens**2
    if b <= 0.0:
        return 1.0 if a > 0.0 else 0.5
    return 1.0 / (1.0 + math.exp(-min(a / b, 700.0)))


def fix_overhead(alpha: float, impact: float, adjusted: float) -> float:
    """CFO = α·CCI·(1−β′) (eq. 12), clamped to [0, 1]: share of the chunk's rows to recompute.

    CCI is at least 0.5, so α = 1 recomputes half of an unknown chunk; useful α are 0.2-0.6.
    """
    return min(1.0, max(0.0, alpha * impact * (1.0 - adjusted)))
