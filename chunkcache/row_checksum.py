"""Checksums of rows that are given out: SQLite has none for its pages.

A flipped bit in a text would change answers in silence. Rows of the catalog that an earlier version
wrote have none, and are believed, until they are written again or `check --fix` fills theirs in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

from chunkcache.errors import CorruptRecord

if TYPE_CHECKING:
    from collections.abc import Sequence


def row_checksum(fields: Sequence[object]) -> bytes:
    """16 bytes over strings, bytes and numbers, and over where each of them ends."""
    total = xxhash.xxh3_128()
    for field in fields:
        octets = field if isinstance(field, bytes) else str(field).encode()
        total.update(len(octets).to_bytes(8, "little"))
        total.update(octets)
    return total.digest()


def verify_row(
    what: str, document_id: str, checksum: bytes | None, fields: Sequence[object]
) -> None:
    """Nothing, if it is what was written.

    Raises:
        CorruptRecord: it is not.
    """
    if checksum is not None and checksum != row_checksum(fields):
        raise CorruptRecord(
            f"catalog: {what} of document {document_id!r} is damaged, its checksum differs. "
            "Hint: remove the document and ingest it again; then look after the disk"
        )
