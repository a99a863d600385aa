"""What requests say about the ranking of a search, in OpenAI's words."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from chunkcache.ranking import Ranking
from chunkcache.server.shapes.body import Body, stated


class HybridSearch(Body):
    """Weights of the two rankings that are fused."""

    embedding_weight: float = Field(1.0, ge=0.0, le=1e6)
    text_weight: float = Field(1.0, ge=0.0, le=1e6)

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if not self.embedding_weight and not self.text_weight:
            raise stated("hybrid_search: one of the two weights must be above 0")
        return self


class RankingOptions(Body):
    """There is one ranker, whatever it is called; a threshold of 0 leaves out nothing."""

    ranker: str | None = Field(None, pattern=r"^(auto|none|default-\d{4}-\d{2}-\d{2})$")
    score_threshold: float | None = Field(
        None, ge=0.0, le=1.0, description="cosine with the query; the search is by cosines then"
    )
    hybrid_search: HybridSearch | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.score_threshold and self.hybrid_search is not None:
            raise stated(
                "ranking_options: score_threshold and hybrid_search exclude each other, fused "
                "ranks do not say how well a passage fits. Hint: leave one of them out"
            )
        return self

    def to_ranking(self) -> Ranking | None:
        """The same in the service's terms; None: as its settings say."""
        if self.score_threshold:
            return Ranking(least_score=self.score_threshold)
        if self.hybrid_search is None:
            return None
        weights = (self.hybrid_search.embedding_weight, self.hybrid_search.text_weight)
        return Ranking(weights=weights)
