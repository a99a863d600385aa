"""How one search ranks, where that is not as the settings say."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Weight = Annotated[float, Field(ge=0.0, le=1e6)]


class Ranking(BaseModel):
    """Wishes of one search; one of the two at most, because fused ranks are no cosines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least_score: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="passages whose cosine with the query is less are left out; the others are "
        "ranked by it alone",
    )
    weights: tuple[_Weight, _Weight] | None = Field(
        None, description="of the ranking by vectors and of that by words, which are fused"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.weights is not None and self.least_score is not None:
            raise ValueError(
                "a threshold and weights exclude each other: fused ranks are no cosines"
            )
        if self.weights == (0.0, 0.0):
            raise ValueError("one of the two weights must be above 0")
        return self
