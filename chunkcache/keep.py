"""On what terms KV is kept, as users say it. Pydantic only: the client has it, too."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

_TEN_YEARS_S = 315_360_000.0

DEFAULT_LIMIT: Final = "default"
Limit: TypeAlias = int | Literal["default"] | None
"""Bytes of each tier that a tenant may hold; None: no limit, whatever the settings say; `default`:
what they say, as if nothing else had ever been said."""


class Keep(BaseModel):
    """Terms of KV. What is left out is as usual, so that an empty one takes all wishes back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retention: Literal["normal", "warmed", "pinned"] = Field(
        "normal",
        description="warmed: documents of requests do not push it out; pinned: it leaves no tier "
        "below the device to make room, as far as half of it goes",
    )
    priority: int = Field(0, ge=-16, le=16, description="a hit is worth 2^priority of another's")
    expires_after_s: float | None = Field(
        None, gt=0.0, le=_TEN_YEARS_S,
        description="soft: from then on it leaves before all else, and is served until it has; "
        "null: never",
    )  # fmt: skip
