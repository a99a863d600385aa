"""Names that settings, requests and reports share: of repair policies, of orders of passages."""

from __future__ import annotations

from typing import Literal

RepairPolicyName = Literal[
    "none", "first_k", "question", "deviation", "gradual", "cfo", "focused", "all"
]
PassageOrder = Literal["relevance", "cache_friendly"]
