"""How much of each tier a tenant may hold: what the settings say, and what was said since."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from chunkcache.durable import NameNotSynced, write_durably
from chunkcache.errors import ConfigError, StoreError
from chunkcache.keep import DEFAULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from chunkcache.keep import Limit

log = structlog.get_logger(__name__)


class Quotas:
    """Bytes by tenant; who is not named has no limit. Thread-safe.

    What is set outlives a restart, in a file, and goes before the settings. What other processes
    set in it meanwhile is kept, and gone by from the next time that anybody asks or `follow`s.

    Args:
        file: made when something is set for the first time.
        configured: those of the settings.

    Raises:
        ConfigError: the file cannot be read.
    """

    def __init__(self, file: Path, configured: Mapping[str, int]) -> None:
        self._file = file
        self._configured = dict(configured)
        self._lock = threading.Lock()
        self._tell: Callable[[str, int | None], None] = lambda _, __: None
        self._version = _version_of(file)  # before it is read: what changes since is noticed
        self._set = _read(file)

    def listen(
        self, tell: Callable[[str, int | None], None], *, known: Mapping[str, int | None]
    ) -> None:
        """Call `tell` with each tenant whose limit is not as `known`, now and whenever it changes.

        It is on disk then. None: no limit any more.
        """
        with self._lock:
            self._tell = tell
            self._tell_since(known)

    def follow(self) -> None:
        """Go by what other processes have set since. One `stat` where that is nothing.

        A file that cannot be read is warned about, once, and changes nothing.
        """
        version = _version_of(self._file)
        with self._lock:
            if version == self._version:
                return
            self._version = version
            try:
                self._change_to(_read(self._file))
            except ConfigError as error:
                log.warning("quotas_unreadable", reason=error.message, effect="they are as before")

    def limit_bytes(self, tenant: str) -> int | None:
        """None: no limit."""
        self.follow()
        with self._lock:
            return self._limits().get(tenant)

    def all(self) -> dict[str, int]:
        """Those that are limited."""
        self.follow()
        with self._lock:
            return {tenant: limit for tenant, limit in self._limits().items() if limit is not None}

    def put(self, tenant: str, limit: Limit) -> None:
        """Limit a tenant from now on, or not any more.

        Args:
            limit: bytes; None: no limit, whatever the settings say; `default`: what they say.

        Raises:
            StoreError: the file cannot be read or written, and all is as it was; or the limit
                holds from now on, but maybe not after a power failure.
        """
        unsure: NameNotSynced | None = None
        with self._lock:
            try:
                with _alone_in(self._file.parent):
                    changed = _read(self._file)
                    changed.pop(tenant, None)
                    if limit != DEFAULT_LIMIT:
                        changed[tenant] = limit
                    try:
                        write_durably(self._file, json.dumps(changed).encode())
                    except NameNotSynced as error:  # whoever reads the file goes by it all the same
                        unsure = error
                    self._version = _version_of(self._file)
            except OSError as error:
                raise StoreError(f"quotas: cannot write {self._file}: {error.strerror}") from error
            except ConfigError as error:
                raise StoreError(error.message) from error
            self._change_to(changed)
        if unsure is not None:
            raise StoreError(
                f"quotas: the limit is set, but after a power failure it may be as it was: cannot "
                f"sync {self._file.parent}: {unsure.strerror}. Hint: set it again"
            ) from unsure

    def _limits(self) -> dict[str, int | None]:
        return {**self._configured, **self._set}

    def _change_to(self, changed: dict[str, int | None]) -> None:
        """Under the lock."""
        before, self._set = self._limits(), changed
        self._tell_since(before)

    def _tell_since(self, before: Mapping[str, int | None]) -> None:
        now = self._limits()
        for tenant in sorted({*before, *now}):
            if now.get(tenant) != before.get(tenant):
                self._tell(tenant, now.get(tenant))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process is in here meanwhile: two that read and write would lose what one set."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _version_of(file: Path) -> tuple[int, ...]:
    """What changes whenever the file does; nothing where it cannot be looked at."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(file: Path) -> dict[str, int | None]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise _wrong(file, str(error)) from error
    if not isinstance(found, dict):
        raise _wrong(file, "no object")
    for tenant, limit in found.items():
        if limit is not None and (type(limit) is not int or limit < 0):
            raise _wrong(file, f"the limit of {tenant!r} is neither bytes nor null")
    return found


def _wrong(file: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"quotas: cannot read {file}: {problem}. Hint: remove it to go by store.quota_bytes alone"
    )
