"""Repair: which rows of reused chunks are recomputed. One policy per class, listed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.repair.base import (
    RepairPolicy,
    RepairTask,
    ReusedChunk,
    RowSelection,
    Scoring,
    Step,
)
from chunkcache.repair.cfo import FixOverhead
from chunkcache.repair.fixed import FirstK, NoRepair, RepairAll
from chunkcache.repair.focused import FocusedChunks
from chunkcache.repair.gradual import FallingRows
from chunkcache.repair.scored import DeviatingRows, QuestionRows

if TYPE_CHECKING:
    from chunkcache.config import RepairSettings
    from chunkcache.policy_names import RepairPolicyName

__all__ = [
    "RepairPolicy",
    "RepairTask",
    "ReusedChunk",
    "RowSelection",
    "Scoring",
    "Step",
    "policy_named",
]


def policy_named(name: RepairPolicyName, settings: RepairSettings) -> RepairPolicy:
    """The policy of that name, with its constants from the settings."""
    policies: dict[str, RepairPolicy] = {
        "none": NoRepair(),
        "first_k": FirstK(settings.first_k_tokens),
        "question": QuestionRows(),
        "deviation": DeviatingRows(),
        "gradual": FallingRows(),
        "cfo": FixOverhead(settings.cfo_alpha),
        "focused": FocusedChunks(settings.cfo_alpha),
        "all": RepairAll(),
    }
    return policies[name]
