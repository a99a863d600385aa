"""Calls to another machine: bounded in time, and not made while they keep failing."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import structlog

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.base import TierAtRest

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.store.remote.breaker import Breaker

log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class Guard:
    """Runs calls of one kind to one tier. Thread-safe.

    A call runs in a thread of its own, because a client's time-outs are for each packet and some
    have none; one that hangs is left behind and ends with its connection.

    Args:
        tier, kind: for messages.
        timeout_s: for one call.
        most_calls: at a time, those left behind included; others wait for a place, in their time.
    """

    def __init__(
        self, tier: str, kind: str, breaker: Breaker, timeout_s: float, *, most_calls: int = 16
    ) -> None:
        self.breaker = breaker
        self._tier = tier
        self._kind = kind
        self._timeout_s = timeout_s
        self._places = threading.BoundedSemaphore(most_calls)

    def run(self, call: Callable[[], _T]) -> _T:
        """What the call gives.

        Raises:
            TierAtRest: it was not made.
            CorruptRecord: the call raised it: the tier answers, but wrongly.
            StoreError: it failed or took too long.
        """
        if not self.breaker.allows():
            raise TierAtRest(
                f"store: {self._tier}: {self._kind}s rest for {self.breaker.rests_s:.0f} s more, "
                "because they failed several times in a row"
            )
        try:
            result = self._in_time(call)
        except CorruptRecord:
            self._succeeded()
            raise
        except StoreError as error:
            self._failed(error)
            raise
        except BaseException:  # an interrupt: how the call would have ended is not known
            self.breaker.failed()
            raise
        self._succeeded()
        return result

    def _in_time(self, call: Callable[[], _T]) -> _T:
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except Exception as error:  # handed to who waits, if anyone still does
                done.set_exception(error)
            finally:
                self._places.release()

        if not self._places.acquire(timeout=self._timeout_s):
            raise StoreError(f"store: {self._tier}: too many {self._kind}s hang")
        thread = threading.Thread(target=run, name=f"chunkcache-{self._tier}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._places.release()
            raise StoreError(
                f"store: {self._tier}: no thread for a {self._kind}: {error}. "
                "Hint: raise the limit of processes (ulimit -u, or the container's)"
            ) from error
        try:
            return done.result(self._timeout_s)
        except StoreError:
            raise
        except TimeoutError as error:
            raise StoreError(
                f"store: {self._tier}: a {self._kind} took more than {self._timeout_s:g} s. "
                "Hint: store.remote_timeout_s is the limit"
            ) from error
        except Exception as error:  # what clients raise has no common ancestor
            raise StoreError(f"store: {self._tier}: {type(error).__name__}: {error}") from error

    def _succeeded(self) -> None:
        if self.breaker.succeeded():
            log.info("tier_back", tier=self._tier, kind=self._kind)

    def _failed(self, error: StoreError) -> None:
        if self.breaker.failed():
            log.warning(
                "tier_at_rest", tier=self._tier, kind=self._kind, reason=error.message,
                next_try_s=round(self.breaker.rests_s), effect="counts as a miss",
            )  # fmt: skip
