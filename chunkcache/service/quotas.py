"""How much of each tier a tenant may hold: what the settings say, and what was said since."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chunkcache.durable import write_durably
from chunkcache.errors import ConfigError, StoreError
from chunkcache.keep import DEFAULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from chunkcache.keep import Limit


class Quotas:
    """Bytes by tenant; who is not named has no limit. Thread-safe.

    What is set outlives a restart, in a file, and goes before the settings. What other processes
    set in it meanwhile is kept, and known here from the next `put` on.

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
        self._set = _read(file)

    def limit_bytes(self, tenant: str) -> int | None:
        """None: no limit."""
        with self._lock:
            return self._set.get(tenant, self._configured.get(tenant))

    def all(self) -> dict[str, int]:
        """Those that are limited."""
        with self._lock:
            merged = {**self._configured, **self._set}
        return {tenant: limit for tenant, limit in merged.items() if limit is not None}

    def put(
        self,
        tenant: str,
        limit: Limit,
        tell: Callable[[str, int | None], None] = lambda _, __: None,
    ) -> None:
        """Limit a tenant from now on, or not any more.

        Args:
            limit: bytes; None: no limit, whatever the settings say; `default`: what they say.
            tell: called with each tenant whose limit is another now, and the limit, once it is on
                disk.

        Raises:
            StoreError: the file cannot be read or written; all is as it was.
        """
        with self._lock:
            try:
                with _alone_in(self._file.parent):
                    changed = _read(self._file)
                    changed.pop(tenant, None)
                    if limit != DEFAULT_LIMIT:
                        changed[tenant] = limit
                    write_durably(self._file, json.dumps(changed).encode())
            except OSError as error:
                raise StoreError(f"quotas: cannot write {self._file}: {error.strerror}") from error
            except ConfigError as error:
                raise StoreError(error.message) from error
            before, self._set = self._set, changed
            for one in sorted({*before, *changed, tenant}):
                now = self._set.get(one, self._configured.get(one))
                if one == tenant or now != before.get(one, self._configured.get(one)):
                    tell(one, now)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process is in here meanwhile: two that read and write would lose what one set."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
