"""What was found damaged in the catalog: said in the log, and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from prometheus_client import Counter

    from chunkcache.errors import CorruptRecord

log = structlog.get_logger(__name__)


class Damage:
    """Is told of each damaged passage and text whenever one is met.

    Args:
        counter: with the label `kind`; None: nothing counts.
    """

    def __init__(self, counter: Counter | None = None) -> None:
        self._counter = counter

    def note_passage(self, error: CorruptRecord) -> None:
        """A passage that an answer, a warm-up or a listing goes without."""
        self._count("passage")
        log.error("passage_damaged", reason=error.message)

    def note_text(self, error: CorruptRecord) -> None:
        """A document's text that is not shown, and not split again."""
        self._count("text")
        log.error("text_damaged", reason=error.message)

    def _count(self, kind: str) -> None:
        if self._counter is not None:
            self._counter.labels(kind).inc()
