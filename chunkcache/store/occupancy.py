"""Who has a store open. Whoever comes alone looks its file over before LMDB maps it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import structlog

from chunkcache.errors import StoreError
from chunkcache.store.damage import find_damage

log = structlog.get_logger(__name__)

_LOCK_FILE = "occupied"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Occupancy:
    """A lock on a store that all who have it open hold together, from before LMDB opens it.

    Whoever comes first has it alone for as long as it takes to look for damage. Every page is
    looked at once per start of the machine, since only a power failure leaves pages unwritten;
    otherwise the meta pages and the length. A damaged file is renamed to
    `data.mdb.damaged-<time>`, a new one is begun, and an earlier damaged one is removed.

    Args:
        file: LMDB's data file; its folder is made when missing.
        sets_aside: False: a damaged file is refused, not renamed.
        reads_only: the file cannot be written here. Without LMDB's own lock, which is in a file
            too, nobody can read beside a writer: whoever only reads has the store alone to the end.

    Raises:
        StoreError: the file is damaged and was not set aside, or something cannot be read.
    """

    def __init__(self, file: Path, *, sets_aside: bool, reads_only: bool = False) -> None:
        self._file = file
        self._reads_only = reads_only
        self.set_aside: Path | None = None  # where the damaged file is now
        try:
            self._lock = self._opened()
        except OSError as error:
            raise StoreError(f"store: cannot open {file.parent}: {error.strerror}") from error
        try:
            self._alone = self._takes_alone()
            self._look(sets_aside and not reads_only)
            if not reads_only:
                fcntl.flock(self._lock, fcntl.LOCK_SH)
        except OSError as error:
            self.close()
            raise StoreError(f"store: cannot open {file}: {error.strerror}") from error
        except StoreError:
            self.close()
            raise

    def note_sound(self) -> None:
        """LMDB has opened the file: until the machine starts again its pages need no look."""
        if self._alone and not self._reads_only and (state := self._state()):
            os.pwrite(self._lock, state, 0)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def _opened(self) -> int:
        lock = self._file.parent / _LOCK_FILE
        if self._reads_only:  # nobody has used a copy that has no such file
            return os.open(lock if lock.exists() else self._file, os.O_RDONLY)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)

    def _takes_alone(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._reads_only:
                raise StoreError(
                    f"store: {self._file.parent} cannot be written here, and is in use: what is "
                    "read beside a writer without its lock may change on the way. Hint: run this "
                    "as a user who may write there, or when nobody uses the store"
                ) from None
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits while somebody else looks
            return False
        return True

    def _look(self, sets_aside: bool) -> None:
        is_known = os.pread(self._lock, 256, 0) == self._state() != b""
        damage = find_damage(self._file, all_pages=self._alone and not is_known)
        if damage is None:
            return
        if not (self._alone and sets_aside):
            hint = "chunkcache check --fix sets it aside" if self._alone else "stop all its users"
            raise StoreError(
                f"store: {self._file} is damaged: {damage}. Hint: {hint}; it is only a cache"
            )
        for earlier in self._file.parent.glob(f"{self._file.name}.damaged-*"):
            earlier.unlink()  # one is enough to find out what happened, more could fill the disk
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.set_aside = self._file.rename(f"{self._file}.damaged-{moment}")
        log.warning(
            "store_set_aside", reason=damage, path=str(self.set_aside),
            effect="the disk tier starts empty; what it held is computed again when asked for",
        )  # fmt: skip

    def _state(self) -> bytes:
        """This start of the machine and this very file; empty where one of them is not known."""
        try:
            return f"{_BOOT_ID.read_text().strip()} {self._file.stat().st_ino:020}\n".encode()
        except OSError:
            return b""
