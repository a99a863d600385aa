"""What operators do to a store on disk, beside the services that use it. Loads no torch.

Each call opens the environment for itself; this process must not have it open already.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chunkcache.codec_spec import is_read
from chunkcache.durable import sync_folder
from chunkcache.errors import CorruptRecord, InvalidRequest, StoreError
from chunkcache.home import STORE_FILE
from chunkcache.store.check import check_store
from chunkcache.store.layout import MetaEntry, map_bytes_for
from chunkcache.store.lmdb_env import RecordEnv

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from chunkcache.store.check import CheckReport

_BATCH_BYTES = 32 * 1024 * 1024  # one transaction removes so much, or one record


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry of a store, as it was when it was looked at."""

    digest: bytes  # that it lies under
    packed: bytes
    entry: MetaEntry


@dataclass(slots=True)
class Inventory:
    """What a store holds, and how full it is."""

    capacity_bytes: int
    size_bytes: int = 0
    stored: list[Stored] = field(default_factory=list)
    unreadable: int = 0  # entries that are damaged; `check --fix` removes them

    def by_tenant(self) -> dict[str, tuple[int, int]]:
        """Records and bytes; the empty name is that of records on usual terms."""
        records: Counter[str] = Counter()
        size_bytes: Counter[str] = Counter()
        for one in self.stored:
            records[one.entry.terms.tenant] += 1
            size_bytes[one.entry.terms.tenant] += one.entry.size_bytes
        return {tenant: (records[tenant], size_bytes[tenant]) for tenant in sorted(records)}

    def by_model(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Records and bytes by the first digits of the model's fingerprint, and codec."""
        records: Counter[tuple[str, str]] = Counter()
        size_bytes: Counter[tuple[str, str]] = Counter()
        for one in self.stored:
            kind = (one.entry.fingerprint.hex()[:12], one.entry.codec)
            records[kind] += 1
            size_bytes[kind] += one.entry.size_bytes
        return {kind: (records[kind], size_bytes[kind]) for kind in sorted(records)}


def take_inventory(path: Path, capacity_bytes: int) -> Inventory:
    """Read every entry, no record. A store that was never made is empty, and is not made.

    Raises:
        StoreError: the store cannot be opened, or its file is damaged.
    """
    inventory = Inventory(capacity_bytes)
    with opened(path, capacity_bytes) as env:
        if env is None:
            return inventory
        with env.reading() as txn:
            inventory.size_bytes = env.used_bytes(txn)
            for digest, packed in env.entries(txn):
                try:
                    inventory.stored.append(Stored(digest, packed, MetaEntry.unpack(packed)))
                except CorruptRecord:
                    inventory.unreadable += 1
    return inventory


def why_useless(
    entry: MetaEntry, *, fingerprint: bytes, codecs: Collection[str], now_s: float | None = None
) -> str | None:
    """`other model`, `other codec` or `expired`; None: it can still be served."""
    if entry.fingerprint != fingerprint:
        return "other model"
    if not is_read(entry.codec, codecs):
        return "other codec"
    expires_s = entry.terms.expires_s
    is_over = expires_s < math.inf and expires_s < (time.time() if now_s is None else now_s)
    return "expired" if is_over else None


def remove_stored(path: Path, capacity_bytes: int, found: Iterable[Stored]) -> int:
    """Remove records, unless another was put in a record's place since. How many have gone.

    Raises:
        StoreError: the store cannot be written; what was removed until then is.
    """
    removed = 0
    with opened(path, capacity_bytes) as env:
        if env is not None:
            for batch in _batches(found):
                with env.writing() as txn:
                    gone = sum(env.remove_unchanged(txn, one.digest, one.packed) for one in batch)
                removed += gone
            env.sync()
    return removed


def back_up(path: Path, capacity_bytes: int, folder: Path) -> CheckReport:
    """Copy a store, as of one moment, into a new folder, and verify every record of the copy.

    Services may read and write meanwhile. The folder has its name only once the copy is whole.

    Raises:
        InvalidRequest: the folder is there already.
        StoreError: there is no store, it is damaged, or the disk is full.
    """
    if folder.exists():
        raise InvalidRequest.of("folder", str(folder), "a new folder", "give another name")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    with opened(path, capacity_bytes, is_copied=True) as env:
        if env is None:
            raise StoreError(f"store: there is none at {path}. Hint: look at --home")
        try:
            partial.mkdir(parents=True)
            env.copy(partial)
            sync_folder(partial)  # else its name might outlive a power failure, and be of nothing
            partial.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise StoreError(f"store: cannot write {partial}: {error}") from error
        finally:
            if partial.exists():
                for file in partial.iterdir():
                    file.unlink()
                partial.rmdir()
    return check_store(folder, capacity_bytes)


@contextmanager
def opened(
    path: Path, capacity_bytes: int, *, is_copied: bool = False
) -> Iterator[RecordEnv | None]:
    """The environment; None where none was ever made. A damaged file is refused, not set aside."""
    if not (path / STORE_FILE).exists():
        yield None
        return
    map_bytes = map_bytes_for(capacity_bytes)
    with closing(RecordEnv(path, map_bytes, sets_aside=False, is_copied=is_copied)) as env:
        yield env


def _batches(found: Iterable[Stored]) -> Iterator[list[Stored]]:
    batch: list[Stored] = []
    size_bytes = 0
    for one in found:
        if batch and size_bytes + one.entry.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(one)
        size_bytes += one.entry.size_bytes
    if batch:
        yield batch
