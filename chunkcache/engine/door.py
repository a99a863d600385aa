"""Who may come in: callers up to a limit, parts of what they asked for, nobody once it is shut."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest, Overloaded, PromptTooLong, ShuttingDown
from chunkcache.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.config import EngineSettings
    from chunkcache.engine.pages import PagePool
    from chunkcache.engine.request import Request


class Door:
    """Counts who is inside. Thread-safe.

    A caller holds a place from before its request is prepared until the request has ended. What is
    run for it meanwhile takes no other place: once let in, it is not refused for its own parts.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._queue_limit = settings.queue_limit
        self._max_running = settings.max_running
        self._limit = settings.queue_limit + settings.max_running
        self._pace = Pace()
        self._lock = threading.Lock()  # guards the fields below
        self._callers = 0
        self._parts = 0
        self._shut = False

    @property
    def inside(self) -> int:
        """Callers, and parts of theirs that run or wait."""
        with self._lock:
            return self._callers + self._parts

    @property
    def is_shut(self) -> bool:
        """Whether nothing gets in any more."""
        with self._lock:
            return self._shut

    def take_place(self) -> None:
        """Raises Overloaded: all places are taken; ShuttingDown: the door is shut.

        An overload says when a request that joined the queue now would begin to run.
        """
        with self._lock:
            self._refuse_if_shut()
            if self._callers >= self._limit:
                raise Overloaded(
                    f"{self._callers} requests are running or waiting, the limit is "
                    f"engine.queue_limit = {self._queue_limit} waiting",
                    retry_after_s=self._pace.wait_s(self._queue_limit + 1, self._max_running),
                )
            self._callers += 1

    def give_back_place(self) -> None:
        """For a caller whose request never came in."""
        with self._lock:
            self._callers -= 1

    def let_in(self, request: Request, receive: Callable[[Request], None]) -> None:
        """Hand over a request whose caller has a place. Raises ShuttingDown."""
        with self._lock:
            self._refuse_if_shut()
            self._parts += request.is_part
            # inside the lock, so that nothing is handed over once `shut` has returned
            receive(request)

    def let_out(self, request: Request) -> None:
        """The request has ended, and its caller's place with it unless it was only a part."""
        if not request.is_part and request.kv is not None:  # else it never ran
            self._pace.observe(time.perf_counter() - request.started_at)
        with self._lock:
            self._parts -= request.is_part
            self._callers -= not request.is_part

    def shut(self) -> None:
        """Let nobody in from now on. Idempotent."""
        with self._lock:
            self._shut = True

    def _refuse_if_shut(self) -> None:
        if self._shut:
            raise ShuttingDown("the engine is shutting down and admits nothing new")


def check_fits(request: Request, context_tokens: int, pages: PagePool) -> None:
    """Raises PromptTooLong or InvalidRequest: it could never fit the context, or all pages."""
    capacity = pages.num_pages * pages.page_tokens
    limit = min(context_tokens, capacity)
    if request.max_tokens > limit:
        which = "the model's context" if limit == context_tokens else "engine.kv_capacity_bytes"
        raise PromptTooLong(
            f"messages: got {request.max_tokens} tokens with the answer's, must be at most "
            f"{limit} ({which}). Hint: fewer or shorter documents, or a smaller max_tokens.",
            param="messages",
        )
    branches = sum(
        pages.pages_for(branch.max_tokens - len(branch.token_ids)) for branch in request.branches
    )
    if pages.pages_for(request.max_tokens) + branches > pages.num_pages:
        raise InvalidRequest.of(
            "n", len(request.branches) + 1,
            f"so few that all choices together fit {capacity} tokens",
            "fewer choices, a smaller max_tokens, or a larger engine.kv_capacity_bytes",
        )  # fmt: skip
