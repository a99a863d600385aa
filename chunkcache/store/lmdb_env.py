"""One LMDB environment holding records: opening, transactions, and their failures.

What lies where is in layout.py. Nothing here decides what is kept.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import lmdb
import numpy as np

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.home import STORE_FILE
from chunkcache.read_only import WHAT_TO_DO, can_be_written
from chunkcache.store.layout import PAGE_BYTES, header_key, pages_bytes, slab_key, stored_length
from chunkcache.store.lmdb_pages import long_value_of
from chunkcache.store.occupancy import Occupancy
from chunkcache.store.record import DIGEST_BYTES, decode_header, header_length
from chunkcache.store.slab_file import SlabFile
from chunkcache.store.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from chunkcache.store.layout import MetaEntry
    from chunkcache.store.record import RecordHeader
    from chunkcache_kernels.slabs import SlabReader, SlabTable

    AnyTransaction = lmdb.Transaction[bytes] | lmdb.Transaction[memoryview]
    _Txn = TypeVar("_Txn", bound=AnyTransaction)

_TICK = b"tick"  # a key of the unnamed database, written to make a transaction that is not empty
_SLACK_BYTES = 4 * 1024 * 1024  # for tree pages and free lists that come with a transaction


class MapFull(StoreError):
    """No run of free pages in the map is long enough."""


class RecordEnv:
    """An open environment. Thread-safe; one per path and process; not to be used across fork.

    Where the file cannot be written, it is opened to be read, alone (see `Occupancy`).

    Args:
        path: the environment's folder; made when missing.
        map_bytes: upper bound of the file. Address space only; the file grows as it fills.
        sets_aside: a damaged file is renamed (`Occupancy`) and a new one begun; else it is refused.
        is_copied: what the map shows is read on and on, as `copy` does; else only pages of trees
            are looked at through it, here and there.
        reader: see `SlabFile`.

    Raises:
        StoreError: the environment cannot be opened, or is damaged and cannot be set aside.
    """

    def __init__(
        self, path: Path, map_bytes: int, *, sets_aside: bool = True, is_copied: bool = False,
        reader: SlabReader | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self._data_path = str(path / STORE_FILE)
        self._pid = os.getpid()
        self._transactions = Turnstile()
        file = path / STORE_FILE
        self.reads_only = file.exists() and not (can_be_written(file) and can_be_written(path))
        self._occupancy = Occupancy(file, sets_aside=sets_aside, reads_only=self.reads_only)
        self.set_aside = self._occupancy.set_aside
        try:
            self._open(map_bytes, is_copied, reader)
        except BaseException:
            self._occupancy.close()
            raise
        self._occupancy.note_sound()

    def _open(self, map_bytes: int, is_copied: bool, reader: SlabReader | None) -> None:
        path = self.path
        try:
            # No fsync per commit: a commit is complete for other processes and survives a kill;
            # after power loss checksums find values not written. No writemap: it turns a full disk
            # into a signal. No read-ahead: values are not read through the map (slab_file.py), and
            # each page of a tree would bring megabytes around it along.
            self._env = lmdb.open(
                os.fsencode(path), map_size=-(-map_bytes // PAGE_BYTES) * PAGE_BYTES, max_dbs=2,
                sync=False, metasync=False, writemap=False, readahead=is_copied,
                readonly=self.reads_only, lock=not self.reads_only, create=not self.reads_only,
            )  # fmt: skip
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"store: cannot open {path}: {error}. Hint: one process may open it once; "
                "if its files are not LMDB's, delete the folder, it is only a cache"
            ) from error
        try:
            self._file = SlabFile(path / STORE_FILE, self._env.stat()["psize"], reader)
        except StoreError:
            self._env.close()
            raise
        try:
            self._inode = self._file.inode
            self._check_file()
            if not self.reads_only:
                self.free_stale_readers()
            self._meta = self._env.open_db(b"meta", create=not self.reads_only)
            self._slabs = self._env.open_db(b"slabs", create=not self.reads_only)
        except lmdb.Error as error:
            self._close()
            raise StoreError(
                f"store: cannot use {path}: {error}. Hint: free disk space; if it is not a "
                "chunkcache store or is damaged, delete the folder, it is only a cache"
            ) from error
        except StoreError:
            self._close()
            raise

    @property
    def is_ours(self) -> bool:
        """Whether this process opened the environment; False in a forked child."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """Raises `StoreError` in a forked child: LMDB's locks and maps do not survive a fork."""
        if not self.is_ours:
            raise StoreError(
                f"store: {self.path}: opened before a fork. Hint: open it in the child"
            )

    def _check_file(self) -> None:
        # Reading a mapped page past the end of the file would end the process with SIGBUS.
        expected = (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
        found = self._data_stat()
        if found.st_ino != self._inode:  # what is written to the old one dies with this process
            raise StoreError(f"store: {self.path} has another file now. Hint: restart")
        if found.st_size < expected:
            raise StoreError(
                f"store: {self.path} is truncated: {found.st_size} bytes, expected {expected}. "
                "Hint: restart, the damaged file is then set aside; it is only a cache"
            )

    def _data_stat(self) -> os.stat_result:
        try:
            return os.stat(self._data_path)
        except OSError as error:
            raise StoreError(f"store: {self.path} has lost its file: {error.strerror}") from error

    # ------------------------------------------------------------ transactions

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[memoryview]]:
        """A read transaction. Keep it short: what it can see is not reused until it ends.

        Memoryviews got from it must not outlive it. Raises `StoreError`: LMDB failed, or the file
        was truncated or replaced.
        """
        self.check_process()
        try:
            with self._begun(lambda: self._env.begin(buffers=True)) as txn:
                self._check_file()
                yield txn
        except lmdb.Error as error:
            raise StoreError(f"store: cannot read {self.path}: {error}") from error

    @contextmanager
    def writing(self, value_bytes: int = 0) -> Iterator[lmdb.Transaction[bytes]]:
        """A write transaction that puts about `value_bytes`; all or nothing.

        Raises:
            StoreError: map full, disk full or any other failure; nothing was written.
        """
        self.check_process()
        if self.reads_only:
            raise StoreError(f"store: {self.path} cannot be written here. Hint: {WHAT_TO_DO}")
        try:
            with self._begun(lambda: self._env.begin(write=True)) as txn:
                self._check_file()
                self._grow_file(value_bytes)
                yield txn
        except lmdb.MapFullError as error:
            raise MapFull(
                f"store: the map of {self.path} has no room for {value_bytes} bytes more, it is "
                f"limited to {self._env.info()['map_size']} bytes. "
                "Hint: raise store.disk_capacity_bytes"
            ) from error
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"store: cannot write {self.path}: {error}. Hint: free disk space, or lower "
                "store.disk_capacity_bytes and restart"
            ) from error

    @contextmanager
    def _begun(self, begin: Callable[[], _Txn]) -> Iterator[_Txn]:
        """The transaction, over a map that covers what other processes, with larger maps, wrote."""
        for _ in range(3):
            with self._transactions.passing():
                try:
                    txn = begin()
                except lmdb.MapResizedError:
                    pass  # the map is made larger below, once this thread is outside
                else:
                    with txn:
                        yield txn
                    return
            with self._transactions.alone():
                self._env.set_mapsize(0)
        raise StoreError(f"store: {self.path} outgrows every map. Hint: try again")

    def _grow_file(self, value_bytes: int) -> None:
        # LMDB leaves pages unwritten that a transaction took at the end of the file and gave back,
        # so a healthy file may be shorter than it says. Growing it first, under the write lock (as
        # a hole, it takes no space), keeps "too short" a sign of truncation, even after a kill.
        info = self._env.info()
        used = (info["last_pgno"] + 1) * PAGE_BYTES
        target = min(used + value_bytes + _SLACK_BYTES + used // 64, info["map_size"])
        if os.stat(self._data_path).st_size < target:
            os.truncate(self._data_path, target)

    # ------------------------------------------------------------ within a transaction

    def put(
        self,
        txn: lmdb.Transaction[bytes],
        digest: bytes,
        entry: MetaEntry,
        header: bytes,
        slabs: Sequence[bytes],
    ) -> None:
        """Write a record; whatever was left under its digest is replaced. All values are padded."""
        self.remove(txn, digest)
        for layer, slab in enumerate(slabs):
            txn.put(slab_key(digest, layer), slab, db=self._slabs)
        txn.put(header_key(digest), header, db=self._slabs)
        txn.put(digest, entry.pack(), db=self._meta)

    def put_entry(self, txn: lmdb.Transaction[bytes], digest: bytes, entry: MetaEntry) -> None:
        """Say something else in `meta` of a record that is there."""
        txn.put(digest, entry.pack(), db=self._meta)

    def remove(self, txn: lmdb.Transaction[bytes], digest: bytes) -> bool:
        """Remove all of a record. False: `meta` did not have it."""
        with txn.cursor(db=self._slabs) as cursor:
            more = cursor.set_range(digest)
            while more and bytes(cursor.key())[:DIGEST_BYTES] == digest:
                more = cursor.delete()
        return bool(txn.delete(digest, db=self._meta))

    def remove_unchanged(
        self, txn: lmdb.Transaction[bytes], digest: bytes, seen: bytes | None
    ) -> bool:
        """Remove a record whose packed entry still is as `seen`. False: somebody put another.

        An entry says when its record was put, so it tells a record from the one put in its place.
        """
        if self.entry(txn, digest) != seen:
            return False
        self.remove(txn, digest)
        return True

    def used_bytes(self, txn: AnyTransaction) -> int:
        """What all records cost: the pages that values of `slabs` lie in. O(1)."""
        return txn.stat(self._slabs)["overflow_pages"] * PAGE_BYTES

    def num_records(self, txn: AnyTransaction) -> int:
        """Entries of `meta`. O(1)."""
        return txn.stat(self._meta)["entries"]

    def entries(self, txn: AnyTransaction) -> Iterator[tuple[bytes, bytes]]:
        """Digest and packed `MetaEntry` of every record."""
        with txn.cursor(db=self._meta) as cursor:
            for digest, packed in cursor:
                yield bytes(digest), bytes(packed)

    def entry(self, txn: AnyTransaction, digest: bytes) -> bytes | None:
        """The packed `MetaEntry` of a record."""
        packed = txn.get(digest, db=self._meta)
        return bytes(packed) if packed is not None else None

    def slab_digests(self, txn: AnyTransaction) -> set[bytes]:
        """Digests of which `slabs` has anything. Reads keys, not values."""
        with txn.cursor(db=self._slabs) as cursor:
            return {bytes(key)[:DIGEST_BYTES] for key in cursor.iternext(values=False)}

    def record_bytes(self, txn: AnyTransaction, digest: bytes) -> int:
        """Pages that the values of one record lie in, counted one by one."""
        total = 0
        with txn.cursor(db=self._slabs) as cursor:
            more = cursor.set_range(digest)
            while more and bytes(cursor.key())[:DIGEST_BYTES] == digest:
                place = long_value_of(cursor.key())
                total += pages_bytes(len(cursor.value()) if place is None else place.length)
                more = cursor.next()
        return total

    def header(self, txn: AnyTransaction, digest: bytes) -> RecordHeader:
        """The header of a record. Raises `CorruptRecord`: missing, damaged, or another record's."""
        header = decode_header(self.encoded_header(txn, digest))
        if header.stored_digest != digest:
            raise CorruptRecord(f"record {digest.hex()}: the header is another record's")
        return header

    def encoded_header(self, txn: AnyTransaction, digest: bytes) -> bytes:
        """Its bytes without padding, not verified. Raises `CorruptRecord`: there is none."""
        name = f"record {digest.hex()}"
        with txn.cursor(db=self._slabs) as cursor:
            if not cursor.set_key(header_key(digest)):
                raise CorruptRecord(f"{name}: the header is missing")
            buffer = self._file.value(cursor)
        length = header_length(buffer)
        if len(buffer) != stored_length(length) or buffer[length:].strip(b"\0"):
            raise CorruptRecord(f"{name}: the header is padded wrongly")
        return buffer[:length]

    def slabs(
        self, txn: lmdb.Transaction[memoryview], header: RecordHeader
    ) -> Iterator[memoryview]:
        """The bytes of all layers, in order, verified; each valid until the next one.

        Raises:
            CorruptRecord: missing, or its checksum, which covers its length, does not match.
        """
        if sum(header.slab_lengths) > self._env.info()["map_size"]:  # before memory is taken
            raise CorruptRecord(f"record {header.stored_digest.hex()}: its layers are too long")
        scratch = np.empty(max(header.slab_lengths, default=0), np.uint8)
        buffers = [scratch[:length] for length in header.slab_lengths]
        return self._file.layers(txn, self._slabs, header, 0, buffers)

    def places(self, txn: lmdb.Transaction[memoryview], header: RecordHeader) -> SlabTable | None:
        """See `SlabFile`."""
        return self._file.places(txn, self._slabs, header)

    def read(self, places: SlabTable, first: int, count: int, into: int, length: int) -> int:
        """See `SlabFile`."""
        return self._file.read(places, first, count, into, length)

    def fill(
        self, txn: lmdb.Transaction[memoryview], header: RecordHeader, first: int,
        rows: np.ndarray, places: SlabTable | None,
    ) -> None:  # fmt: skip
        """See `SlabFile`."""
        self._file.fill(txn, self._slabs, header, first, rows, places)

    # ------------------------------------------------------------ upkeep

    def tick(self) -> int:
        """An almost empty commit, and its number: LMDB reuses freed pages one commit later."""
        with self.writing() as txn:
            txn.put(_TICK, b"")
            return txn.id()

    def free_stale_readers(self) -> int:
        """Free the slots of readers that were killed; they would keep pages from reuse."""
        self.check_process()
        try:
            return self._env.reader_check()
        except lmdb.Error as error:
            raise StoreError(f"store: cannot check the readers of {self.path}: {error}") from error

    def sync(self) -> None:
        """Flush to the device. Raises `StoreError` when that fails."""
        self.check_process()
        if self.reads_only:
            return
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            raise StoreError(f"store: cannot sync {self.path}: {error}") from error

    def copy(self, folder: Path) -> None:
        """Write all records, as of now and without free pages, into an empty folder. Slow in an
        environment that was not opened to be copied.

        Raises:
            StoreError: the disk is full, or LMDB failed; what is in the folder is no store.
        """
        with self.reading():
            pass  # the map now covers what other processes wrote
        try:
            with self._transactions.passing():
                self._env.copy(os.fsencode(folder), compact=True)  # type: ignore[arg-type]  # as open
                _flush(folder / STORE_FILE)
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"store: cannot copy {self.path} to {folder}: {error}") from error

    def close(self) -> None:
        """Close, when the last transaction has ended. In a forked child, leave it to the parent."""
        if self.is_ours:
            with self._transactions.alone():
                self._close()
            self._occupancy.close()

    def _close(self) -> None:
        self._file.close()
        self._env.close()


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
