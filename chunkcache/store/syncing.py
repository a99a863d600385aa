"""What is written goes to the device now and then, in a thread of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from chunkcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)


class Syncing:
    """Calls `sync` every `interval_s` seconds until it is stopped; a failure is tried again."""

    def __init__(self, sync: Callable[[], None], interval_s: float) -> None:
        self._sync = sync
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chunkcache-sync", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Call it no more, and wait for a call that runs. Idempotent."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._sync()
            except StoreError as error:
                log.warning("store_sync_failed", reason=error.message, effect="tried again")
            except Exception as error:  # a thread that ended would leave all later writes unflushed
                log.error("store_sync_fault", error=repr(error), effect="tried again")
