"""Behind the page at `/`: what happened lately, in bounded memory; warm-ups that can be paused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.console.history import History
from chunkcache.console.journal import Journal
from chunkcache.console.warming import WarmUps

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.console.warming import Warm
    from chunkcache.metrics import Metrics
    from chunkcache.protocol import AnswerFinished, AnswerRequest


class Console:
    """One service's journal of requests, its figures over time, and its warm-ups. Thread-safe.

    Nothing here runs in the background: figures are taken when an answer ends and when somebody
    looks, and a warm-up has a thread only while there is one.

    Args:
        warm: computes the KV of a collection, see `WarmUps`.
    """

    def __init__(self, metrics: Metrics, warm: Warm) -> None:
        self.journal = Journal()
        self.history = History(metrics)
        self.warm_ups = WarmUps(warm)

    def follow(self, request: AnswerRequest) -> Callable[[str, AnswerFinished | None], None]:
        """What to call once when the answer has ended, with its outcome and what it finished as."""
        note = self.journal.begin(request)

        def ended(outcome: str, finished: AnswerFinished | None) -> None:
            note(outcome, finished)
            self.history.note()

        return ended

    def close(self) -> None:
        """Stop the warm-ups and wait for them, some seconds at most. Idempotent."""
        self.warm_ups.close()
