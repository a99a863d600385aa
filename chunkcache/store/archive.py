"""Records on their way to another machine or installation: one stream of bytes, every one checked.

`magic (8) ‖ length (u32) ‖ preamble, JSON ‖ xxh3_128`, then records, then `E ‖ count (u64) ‖
xxh3_128 of both`. A record: `R ‖ header length (u32) ‖ terms length (u16) ‖ terms, JSON ‖ xxh3_128
of all before ‖ header ‖ slabs`, where header (record.py) and slabs are as they lie in LMDB
(layout.py), so that nothing is coded anew. The header holds its own checksum and the slabs'.

Nobody's salt is in it: what a record is found under is made anew by whoever takes it in.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.layout import stored_length
from chunkcache.store.record import CHECKSUM_BYTES, checksum, decode_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.store.record import RecordHeader

_MAGIC = b"CHUNKAR\x01"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<sIH")
_END = struct.Struct("<sQ")
_LONGEST_PREAMBLE = 1 << 16
_LONGEST_HEADER = 1 << 26


@dataclass(frozen=True, slots=True)
class Preamble:
    """What the records of an archive have in common."""

    fingerprint: str  # of the model, in hexadecimal
    born_prefix: str  # digest of the tokens that they were computed after
    model: str  # by name, for messages alone


@dataclass(frozen=True, slots=True, eq=False)
class Archived:
    """One record of an archive; `slabs` is None where a slab fails its checksum."""

    encoded: bytes  # the header
    header: RecordHeader
    terms: Terms
    slabs: list[bytes] | None


class ArchiveWriter:
    """Writes an archive into a stream. Without `end` it is known to be cut short."""

    def __init__(self, stream: BinaryIO, preamble: Preamble) -> None:
        self._stream = stream
        self.records = 0
        packed = json.dumps(
            {
                "fingerprint": preamble.fingerprint,
                "born_prefix": preamble.born_prefix,
                "model": preamble.model,
            }
        ).encode()
        head = _MAGIC + _LENGTH.pack(len(packed)) + packed
        stream.write(head + checksum(head))

    def add(self, encoded: bytes, terms: Terms, slabs: Sequence[bytes]) -> None:
        """Write one record: its header, and its slabs as they are stored."""
        packed = json.dumps(_packed_terms(terms)).encode()
        head = _RECORD.pack(b"R", len(encoded), len(packed)) + packed
        for part in (head, checksum(head), encoded, *slabs):
            self._stream.write(part)
        self.records += 1

    def end(self) -> None:
        """Say that this is all."""
        end = _END.pack(b"E", self.records)
        self._stream.write(end + checksum(end))
        self._stream.flush()


class ArchiveReader:
    """Reads an archive from a stream, one record at a time.

    Raises:
        StoreError: it is no archive.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        head = self._read(len(_MAGIC) + _LENGTH.size, "at its beginning")
        (length,) = _LENGTH.unpack_from(head, len(_MAGIC))
        if not head.startswith(_MAGIC) or length > _LONGEST_PREAMBLE:
            raise StoreError(
                "archive: this is no archive of chunkcache's, or of another version. Hint: "
                "chunkcache export makes one"
            )
        packed = self._checked(head, length, "at its beginning")
        try:
            self.preamble = Preamble(**json.loads(packed))
        except (ValueError, TypeError) as error:
            raise StoreError(f"archive: its beginning is malformed: {error}") from error

    def records(self, most_bytes: int) -> Iterator[Archived]:
        """Every record in order, read and verified whole before it is given.

        Args:
            most_bytes: of one record; what claims more is taken for damage.

        Raises:
            StoreError: the archive ends in the middle, or cannot be followed any further.
        """
        count = 0
        while True:
            where = f"after {count} records"
            kind = self._read(1, where)
            if kind == b"E":
                end = kind + self._read(_END.size - 1, where)
                self._checked(end, 0, where)
                if _END.unpack(end)[1] != count:
                    raise StoreError(f"archive: records are missing from it, it ends {where}")
                return
            fixed = kind + self._read(_RECORD.size - 1, where)
            _, header_bytes, terms_bytes = _RECORD.unpack(fixed)
            if kind != b"R" or header_bytes > _LONGEST_HEADER:
                raise StoreError(f"archive: it is damaged {where}. Hint: export it again")
            terms = self._checked(fixed, terms_bytes, where)
            yield self._record(self._read(header_bytes, where), terms, most_bytes, where)
            count += 1

    def _record(self, encoded: bytes, terms: bytes, most_bytes: int, where: str) -> Archived:
        try:
            header = decode_header(encoded)
            lengths = [stored_length(length) for length in header.slab_lengths]
            if sum(lengths) > most_bytes:
                raise CorruptRecord(f"{sum(lengths)} bytes, the store holds {most_bytes}")
            kept_on = _unpacked_terms(json.loads(terms))
        except (CorruptRecord, ValueError, TypeError) as error:
            raise StoreError(f"archive: it is damaged {where}: {error}") from error
        slabs = [self._read(length, where) for length in lengths]
        expected = zip(slabs, header.slab_checksums, strict=True)
        is_sound = all(checksum(slab) == known for slab, known in expected)
        return Archived(encoded, header, kept_on, slabs if is_sound else None)

    def _checked(self, before: bytes, length: int, where: str) -> bytes:
        """`length` bytes, of which and of those before them the checksum follows."""
        found = self._read(length, where)
        if checksum(before + found) != self._read(CHECKSUM_BYTES, where):
            raise StoreError(f"archive: it is damaged {where}. Hint: export it again")
        return found

    def _read(self, length: int, where: str) -> bytes:
        found = self._stream.read(length)
        if len(found) < length:
            raise StoreError(
                f"archive: it ends {where}, before its end. Hint: export or copy it again; "
                "whole records stay"
            )
        return found


def _packed_terms(terms: Terms) -> dict[str, float | int | None]:
    expires_s = None if terms.expires_s == math.inf else terms.expires_s
    return {
        "priority": terms.priority, "retention": int(terms.retention), "expires_s": expires_s
    }  # fmt: skip


def _unpacked_terms(packed: dict[str, float | int | None]) -> Terms:
    priority, expires_s = packed.get("priority"), packed.get("expires_s")
    return Terms(
        priority=min(127, max(-128, int(priority or 0))),
        retention=Retention(int(packed.get("retention") or 0)),
        expires_s=math.inf if expires_s is None else float(expires_s),
    )
