"""The last requests of each tenant, with what each passage got and why one was a miss."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, Field

from chunkcache.protocol import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.protocol import AnswerFinished, AnswerRequest

LIMIT: Final = 200
"""Requests kept for each tenant. Tenants come from the key file, so their number is bounded too."""
QUESTION_CHARS: Final = 300


class RequestRecord(BaseModel):
    """One request that was admitted and has ended."""

    id: str
    asked_at: float = Field(description="seconds since the epoch")
    vector_store_id: str
    question: str = Field(description=f"its first {QUESTION_CHARS} characters")
    outcome: str = Field(description="ok, cancelled or error")
    completion_tokens: int = 0
    report: Report | None = Field(
        None, description="as in the response, without the positions of recomputed rows"
    )


class Journal:
    """Bounded memory of requests, by tenant. Thread-safe."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._records: defaultdict[str, deque[RequestRecord]] = defaultdict(
            lambda: deque(maxlen=limit)
        )

    def begin(self, request: AnswerRequest) -> Callable[[str, AnswerFinished | None], None]:
        """What to call when the answer to `request` has ended. The request itself is not kept."""
        asked_at, tenant, store = time.time(), request.tenant, request.collection
        question = request.messages[-1].content[:QUESTION_CHARS]

        def ended(outcome: str, finished: AnswerFinished | None) -> None:
            with self._lock:
                record = RequestRecord(
                    id=f"asked-{next(self._numbers)}",
                    asked_at=asked_at,
                    vector_store_id=store,
                    question=question,
                    outcome=outcome,
                    completion_tokens=finished.completion_tokens if finished else 0,
                    report=_slim(finished.report) if finished else None,
                )
                self._records[tenant].append(record)

        return ended

    def of(self, tenant: str) -> list[RequestRecord]:
        """The tenant's last requests, the one that ended last at the end."""
        with self._lock:
            return list(self._records.get(tenant, ()))


def _slim(report: Report) -> Report:
    """Positions may be thousands a request; how many they are is said beside them."""
    spans = [span.model_copy(update={"recomputed_positions": []}) for span in report.spans]
    return report.model_copy(update={"spans": spans})
