"""Background recompression: records on disk that nobody wants become smaller, one at a time."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import structlog

from chunkcache.cores import one_core
from chunkcache.errors import StoreError
from chunkcache.store.recoder import NotWritten, may_be_recoded

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.cold_settings import ColdSettings
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.disk import DiskTier
    from chunkcache.store.popularity import Popularity

log = structlog.get_logger(__name__)

_LOOK_S = 30.0  # between two looks at a store with nothing to do
_BATCH = 1000  # records found cold by one look
_MARKS = 8  # in `cold_after_s`: so much later than asked for a record is cold at most


class Recompressor:
    """Rewrites cold records of a disk tier with `codec`, in a thread of its own.

    Cold is what nobody has wanted for `cold_after_s`, from whichever tier it was served: time is
    told by the number of uses counted since. A process that has just begun knows of none, so that
    nothing is cold at first. The coldest go first. What rounds something is used only on records as
    they were computed, and not on pinned ones.

    Args:
        tier: reads `codec` too.
        popularity: where uses are counted, of the tiers above as well.
        on_recoded: called with the bytes that one record gave back.
        on_error: called when a record could not be rewritten. It is as it was, and left alone if
            it could not be read or coded; what could not be written is tried again.
        clock: seconds.
    """

    def __init__(
        self,
        tier: DiskTier,
        codec: Codec,
        popularity: Popularity,
        settings: ColdSettings,
        *,
        on_recoded: Callable[[int], None] = lambda _: None,
        on_error: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier = tier
        self._codec = codec
        self._popularity = popularity
        self._settings = settings
        self._on_recoded = on_recoded
        self._on_error = on_error
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()  # times, and the uses counted until then
        self._cold: deque[tuple[bytes, int]] = deque()  # digests and bytes, coldest first
        self._left_alone: set[bytes] = set()  # would not be smaller, or cannot be coded
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chunkcache-recompress", daemon=True)

    def start(self) -> None:
        """Begin to look now and then."""
        self._thread.start()

    def close(self) -> None:
        """Finish the record that is being rewritten, and end. Before the tier is closed."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def step(self) -> float:
        """Rewrite the coldest record, if there is a cold one and the tier is full enough.

        Returns:
            Seconds until the next call.
        """
        try:
            cold = self._next()
        except StoreError as error:
            self._failed(error.message)
            return _LOOK_S
        if cold is None:
            return min(_LOOK_S, self._settings.cold_after_s / _MARKS) or _LOOK_S
        digest, size_bytes = cold
        try:
            with one_core():
                saved_bytes = self._tier.recode(digest, self._codec)
        except NotWritten as error:
            self._failed(error.message, digest)
            return _LOOK_S
        except Exception as error:  # one odd record must not stop all later ones
            self._left_alone.add(digest)
            self._failed(error.message if isinstance(error, StoreError) else repr(error), digest)
            return _LOOK_S
        if saved_bytes:
            self._on_recoded(saved_bytes)
        elif saved_bytes is not None:
            self._left_alone.add(digest)
        return size_bytes / self._settings.cold_bytes_per_s

    def _next(self) -> tuple[bytes, int] | None:
        """The coldest record and its bytes. Raises `StoreError`: the tier cannot be read."""
        cold_since = self._uses_until_cold()
        usage = self._tier.usage()
        if (
            cold_since is None
            or usage.size_bytes <= self._settings.cold_above * usage.capacity_bytes
        ):
            return None
        if not self._cold:
            self._look(cold_since)
        while self._cold:
            digest, size_bytes = self._cold.popleft()
            if self._popularity.last_use(digest) <= cold_since:
                return digest, size_bytes
        return None

    def _look(self, cold_since: int) -> None:
        entries = self._tier.entries()
        self._left_alone &= {digest for digest, _ in entries}
        last_use = self._popularity.last_use
        found = (
            (last_use(digest), digest, entry.size_bytes)
            for digest, entry in entries
            if digest not in self._left_alone
            and may_be_recoded(entry, self._codec.name)
            and last_use(digest) <= cold_since
        )
        self._cold.extend((digest, size) for _, digest, size in heapq.nsmallest(_BATCH, found))

    def _uses_until_cold(self) -> int | None:
        """How many uses had been counted `cold_after_s` ago; None: that is too long ago to know."""
        now, after_s = self._clock(), self._settings.cold_after_s
        if not self._marks or now - self._marks[-1][0] >= after_s / _MARKS:
            self._marks.append((now, self._popularity.counted))
        while len(self._marks) > 1 and self._marks[1][0] <= now - after_s:
            self._marks.popleft()
        since, uses = self._marks[0]
        return uses if since <= now - after_s else None

    def _failed(self, reason: str, digest: bytes = b"") -> None:
        self._on_error()
        log.warning(
            "recompression_failed", key=digest.hex()[:12], reason=reason,
            effect="the record is as it was",
        )  # fmt: skip

    def _run(self) -> None:
        delay_s = 0.0
        while not self._stop.wait(delay_s):
            try:
                delay_s = self.step()
            except Exception as error:
                self._on_error()
                log.error(
                    "recompressor_fault", error=repr(error), effect=f"next look in {_LOOK_S:g} s"
                )
                delay_s = _LOOK_S
