"""Long values of LMDB's file by plain reads.

Through LMDB's map values come as fast only if the kernel reads on around each page that is touched,
and then looking for a record costs megabytes (docs/decisions/0034-plain-reads.md). While a read
transaction lasts, LMDB writes to no page that it can see: what is read is what the map shows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.layout import slab_key, stored_length
from chunkcache.store.lmdb_pages import (
    KIND,
    LONG,
    PAGE,
    PAGE_COUNT,
    address_of,
    long_value_of,
)
from chunkcache.store.record import checksum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import lmdb

    from chunkcache.store.lmdb_pages import LongValue
    from chunkcache.store.record import RecordHeader
    from chunkcache_kernels.slabs import SlabReader, SlabTable


class SlabFile:
    """LMDB's data file, open for reading beside LMDB. Thread-safe.

    Args:
        page_bytes: of LMDB's pages.
        reader: reads many layers in one call, where there is one.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, file: Path, page_bytes: int, reader: SlabReader | None = None) -> None:
        self._file = file
        self._reader = reader
        self._page_bytes = page_bytes
        try:
            self._descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"store: cannot open {file}: {error.strerror}") from error
        self.inode = os.fstat(self._descriptor).st_ino

    def value(self, cursor: lmdb.Cursor[bytes] | lmdb.Cursor[memoryview]) -> bytes:
        """The value that a cursor is at.

        Raises:
            StoreError: the device failed.
        """
        place = long_value_of(cursor.key())
        if place is not None:
            found = bytearray(place.length)
            if self._read(place, found):
                return bytes(found)
        return bytes(cursor.value())

    def places(
        self, txn: lmdb.Transaction[memoryview], slabs: lmdb._Database, header: RecordHeader
    ) -> SlabTable | None:
        """Where all layers of a record lie, for `read`; None: nothing here reads so.

        They lie there for as long as the record is there: LMDB moves no long value. Where that does
        not hold, checksums do not either.
        """
        if self._reader is None:
            return None
        table = self._reader.table(header.packed_slabs)
        digest, count, found = header.stored_digest, header.geometry.num_layers, 0
        with txn.cursor(db=slabs) as cursor:
            while found < count and cursor.set_key(slab_key(digest, found)):
                address = address_of(cursor.key())
                told = address is not None and self._reader.find(
                    table, found, address, len(digest), self._page_bytes
                )
                if not told:
                    break
                found += told
        return table

    def read(self, places: SlabTable, first: int, count: int, into: int, length: int) -> int:
        """Layers from `first` on, each of `length` bytes, one behind the other into memory.

        In no transaction: what is read is verified, whatever has been written there since.

        Args:
            into: address of `count * length` bytes. After an error its contents mean nothing.

        Returns: how many of them, from the first on, are there and right.
        """
        assert self._reader is not None
        return self._reader.read(
            self._descriptor, places, first, count, self._page_bytes, into, length, length
        )

    def fill(
        self,
        txn: lmdb.Transaction[memoryview],
        slabs: lmdb._Database,
        header: RecordHeader,
        first: int,
        rows: np.ndarray,
        places: SlabTable | None,
    ) -> None:
        """Layers from `first` on into uint8 `rows` `[n, length]`, each as long as one, verified.

        Args:
            rows: contiguous.
            places: of this record, as it is now.

        Raises:
            CorruptRecord, StoreError: as `layers`, which has the last word on what is not right.
        """
        count, length = rows.shape
        assert rows.flags.c_contiguous and rows.dtype == np.uint8
        whole = 0
        if places is not None:
            whole = self.read(places, first, count, rows.ctypes.data, length)
        if whole < count:
            for _ in self.layers(txn, slabs, header, first + whole, list(rows[whole:])):
                pass  # being yielded is being there

    def layers(
        self,
        txn: lmdb.Transaction[memoryview],
        slabs: lmdb._Database,
        header: RecordHeader,
        first: int,
        buffers: Sequence[np.ndarray],
    ) -> Iterator[memoryview]:
        """The bytes of layers from `first` on, one for each buffer, each as long as it, in order.

        They are read when they are asked for; what a buffer holds is verified when it is given.

        Raises:
            CorruptRecord: missing, or its checksum, which covers its length, does not match.
            StoreError: the device failed.
        """
        places = _places(txn, slabs, header, first, len(buffers))
        lengths, checksums = header.slab_lengths, header.slab_checksums
        for layer, (buffer, place) in enumerate(zip(buffers, places, strict=True), first):
            length = lengths[layer]
            assert len(buffer) == length
            padding = bytearray(stored_length(length) - length)
            is_there = place is not None and self._read(place, buffer.data, padding)
            if not is_there or checksum(buffer.data, padding) != checksums[layer]:
                buffer[:] = _mapped(txn, slabs, header, layer)
            yield buffer.data

    def _read(self, value: LongValue, *into: bytearray | memoryview) -> bool:
        """Fill the buffers, one after the other, with a value that they hold just so.

        Returns:
            False: no such value lies there, and what is in the buffers means nothing.

        Raises:
            StoreError: the device failed, or the file ends before the value does.
        """
        head = bytearray(PAGE.size)
        needed = PAGE.size + value.length
        try:
            count = os.preadv(self._descriptor, [head, *into], value.page * self._page_bytes)
        except OSError as error:
            raise StoreError(f"store: cannot read {self._file}: {error.strerror}") from error
        if count < needed:  # the map must not be asked: reading there would be a signal
            raise StoreError(f"store: {self._file} is truncated: page {value.page} is missing")
        number, _, flags, _, _ = PAGE.unpack(head)
        (pages,) = PAGE_COUNT.unpack(head)
        is_long: bool = number == value.page and flags & KIND == LONG
        fits: bool = count == needed <= pages * self._page_bytes
        return is_long and fits

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _places(
    txn: lmdb.Transaction[memoryview],
    slabs: lmdb._Database,
    header: RecordHeader,
    first: int,
    count: int,
) -> list[LongValue | None]:
    """Where layers lie in the file, as far as that is known. Touches no page of theirs."""
    places: list[LongValue | None] = []
    digest = header.stored_digest
    with txn.cursor(db=slabs) as cursor:
        is_somewhere = cursor.set_range(slab_key(digest, first))
        for layer in range(first, first + count):
            key = cursor.key() if is_somewhere else b""
            is_there = key == slab_key(digest, layer)
            places.append(long_value_of(key) if is_there else None)
            is_somewhere = is_there and layer + 1 < first + count and cursor.next()
    return places


def _mapped(
    txn: lmdb.Transaction[memoryview], slabs: lmdb._Database, header: RecordHeader, layer: int
) -> np.ndarray:
    """The slow twin: a layer, verified, as LMDB itself gives it. Its word is final."""
    found = txn.get(slab_key(header.stored_digest, layer), db=slabs)
    if found is None or checksum(found) != header.slab_checksums[layer]:
        problem = "missing" if found is None else "checksum does not match"
        raise CorruptRecord(f"record {header.stored_digest.hex()} layer {layer}: {problem}")
    return np.frombuffer(found, np.uint8)[: header.slab_lengths[layer]]
