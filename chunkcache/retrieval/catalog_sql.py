"""The SQL that several methods of the catalog share, to be run inside a transaction."""

from __future__ import annotations

import json
import os
import secrets
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chunkcache.chunk import Chunk, pack_token_ids
from chunkcache.errors import NotFound
from chunkcache.protocol import CollectionInfo, DocumentInfo
from chunkcache.retrieval.documents import (
    DEFAULT_COLLECTION,
    Document,
    DocumentKind,
    passage_digest,
    printable,
    searched_text,
)
from chunkcache.row_checksum import row_checksum, verify_row

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

INFO_COLUMNS = (
    "document_id, title, url, sha256, num_chunks, num_tokens, size_bytes, added_at, attributes, "
    "name, path, problems"
)
CHUNK_COLUMNS = (
    "c.chunk_id, c.token_ids, c.text, d.document_id, c.title, c.url, c.start_char, c.end_char, "
    "c.headings, c.opening, c.checksum"
)
SEARCHED_COLUMNS = "c.title, c.headings, c.opening, c.text"
SELECT_CHUNKS = f"SELECT {CHUNK_COLUMNS} FROM chunks c JOIN documents d ON d.key = c.document"


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as it is in the catalog."""

    document: Document
    info: DocumentInfo
    splitter: str  # fingerprint of what made its chunks
    checksum: bytes | None  # of its text, when it was written

    def verify(self) -> None:
        """Nothing, if its text is what was written. Raises `CorruptRecord`."""
        verify_row("the text", self.info.document_id, self.checksum, [self.document.text])


def no_collection(collection_id: str) -> NotFound:
    """The error for an unknown collection, in the words of the API that shows it."""
    return NotFound(f"No such vector store: '{collection_id[:80]}'.", param="vector_store_id")


def born_at(connection: sqlite3.Connection) -> float:
    """When the catalog was made, seconds since the epoch."""
    (value,) = connection.execute("SELECT value FROM meta WHERE key = 'created_at'").fetchone()
    return float(value)


def collection_key(connection: sqlite3.Connection, tenant: str, collection: str) -> int | None:
    """The key of a collection; None for a default that was never written to.

    Raises:
        NotFound: the tenant has no such collection.
    """
    found = connection.execute(
        "SELECT key FROM collections WHERE tenant = ? AND id = ?", (tenant, collection)
    ).fetchone()
    if found is None and collection != DEFAULT_COLLECTION:
        raise no_collection(collection)
    return int(found[0]) if found is not None else None


def writable_collection_key(connection: sqlite3.Connection, tenant: str, collection: str) -> int:
    """The key of a collection, in a write transaction: a default gets its row here."""
    key = collection_key(connection, tenant, collection)
    if key is None:
        cursor = connection.execute(
            "INSERT INTO collections (tenant, id, name, created_at) VALUES (?, ?, ?, ?)",
            (tenant, DEFAULT_COLLECTION, DEFAULT_COLLECTION, born_at(connection)),
        )
        key = cursor.lastrowid
    assert key is not None  # an INSERT always has a row id
    return key


def generation(connection: sqlite3.Connection, tenant: str, collection: str) -> int:
    """See `Catalog.generation`."""
    key = collection_key(connection, tenant, collection)
    found = connection.execute(
        "SELECT generation FROM collections WHERE key = ?", (key,)
    ).fetchone()
    return int(found[0]) if found is not None else 0


def raise_generation(connection: sqlite3.Connection, key: int) -> None:
    """Say that something changed."""
    connection.execute("UPDATE collections SET generation = generation + 1 WHERE key = ?", (key,))


def collection_info(row: Sequence[Any]) -> CollectionInfo:
    """From id, name, created_at, metadata, expires_after_days and last_active_at."""
    collection_id, name, created_at, metadata, expires_after_days, last_active_at = row
    return CollectionInfo(
        id=collection_id, name=name, created_at=created_at, metadata=json.loads(metadata),
        expires_after_days=expires_after_days, last_active_at=last_active_at,
    )  # fmt: skip


def document_info(collection: str, row: Sequence[Any]) -> DocumentInfo:
    """From `INFO_COLUMNS`."""
    names = [name.strip() for name in INFO_COLUMNS.split(",")]
    fields = dict(zip(names, row, strict=True))
    fields["attributes"] = json.loads(fields["attributes"])
    fields["path"] = printable(os.fsdecode(fields["path"])) if fields["path"] else ""
    fields["problems"] = json.loads(fields["problems"])
    return DocumentInfo(collection=collection, **fields)


def chunk(row: Sequence[Any]) -> Chunk:
    """From `CHUNK_COLUMNS`; columns after those are ignored.

    Raises:
        CorruptRecord: it is not what was written.
    """
    chunk_id, token_ids, text, document_id, title, url, start_char, end_char = row[:8]
    headings, opening, checksum = row[8:11]
    verify_row("a passage", document_id, checksum, row[:10])
    return Chunk(
        chunk_id=chunk_id,
        token_ids=tuple(array("I", token_ids)),
        text=text,
        document_id=document_id,
        title=title,
        url=url,
        start_char=start_char,
        end_char=end_char,
        headings=_headings(headings),
        opening=opening,
    )


def searched(row: Sequence[Any]) -> str:
    """The searched text of a chunk, from `SEARCHED_COLUMNS`; columns after those are ignored."""
    title, headings, opening, text = row[:4]
    return searched_text(
        Chunk("", (), text, title=title, headings=_headings(headings), opening=opening)
    )


def _headings(stored: str) -> tuple[str, ...]:
    return tuple(json.loads(stored)) if stored != "[]" else ()


def path_bytes(path: Path | None) -> bytes | None:
    """A path as it is stored: file names may be any bytes."""
    return os.fsencode(path) if path is not None else None


def path_of(stored: bytes | None) -> Path | None:
    """The path that was stored."""
    return Path(os.fsdecode(stored)) if stored is not None else None


def info_of(
    connection: sqlite3.Connection, key: int | None, collection: str, document_id: str
) -> DocumentInfo | None:
    """See `Catalog.document_info`."""
    row = connection.execute(
        f"SELECT {INFO_COLUMNS} FROM documents WHERE collection = ? AND document_id = ?",
        (key, document_id),
    ).fetchone()
    return document_info(collection, row) if row is not None else None


def stored_document(
    connection: sqlite3.Connection, key: int | None, collection: str, document_id: str
) -> StoredDocument | None:
    """A document of the collection with that key, or None."""
    row = connection.execute(
        f"SELECT {INFO_COLUMNS}, path, kind, text, reader, splitter, text_checksum FROM documents "
        "WHERE collection = ? AND document_id = ?",
        (key, document_id),
    ).fetchone()
    if row is None:
        return None
    *info_row, path, kind, text, reader, splitter, checksum = row
    info = document_info(collection, info_row)
    document = Document(
        document_id=info.document_id,
        title=info.title,
        url=info.url,
        sha256=info.sha256,
        size_bytes=info.size_bytes,
        kind=DocumentKind(kind),
        text=text,
        attributes=info.attributes,
        reader=reader,
        name=info.name,
        path=path_of(path),
        problems=tuple(info.problems),
    )
    return StoredDocument(document, info, splitter, checksum)


def put_document(
    connection: sqlite3.Connection,
    key: int,
    document: Document,
    splitter: str,
    chunks: Sequence[Chunk],
    checksum: bytes | None = None,
) -> None:
    """Write the document's own row. A replaced document keeps the time it was first added.

    `checksum` is of its text as it was first written; None: this is the first time.
    """
    connection.execute(
        "INSERT INTO documents (collection, document_id, title, url, sha256, size_bytes, kind,"
        " text, attributes, reader, splitter, num_chunks, num_tokens, added_at, name, path,"
        " problems, text_checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (collection, document_id) DO UPDATE SET title = excluded.title,"
        " url = excluded.url, sha256 = excluded.sha256, size_bytes = excluded.size_bytes,"
        " kind = excluded.kind, text = excluded.text, attributes = excluded.attributes,"
        " reader = excluded.reader, splitter = excluded.splitter, name = excluded.name,"
        " num_chunks = excluded.num_chunks, num_tokens = excluded.num_tokens,"
        " path = excluded.path, problems = excluded.problems,"
        " text_checksum = excluded.text_checksum",
        (
            key, document.document_id, document.title, document.url, document.sha256,
            document.size_bytes, str(document.kind), document.text,
            json.dumps(dict(document.attributes)), document.reader, splitter,
            len(chunks), sum(len(c.token_ids) for c in chunks), time.time(), document.name,
            path_bytes(document.path), json.dumps(document.problems),
            checksum or row_checksum([document.text]),
        ),
    )  # fmt: skip


def put_chunks(
    connection: sqlite3.Connection,
    key: int,
    document_id: str,
    chunks: Sequence[Chunk],
    vectors: np.ndarray,
    space: str,
) -> None:
    """Write a document's chunks and vectors in place of those it had."""
    (document_key,) = connection.execute(
        "SELECT key FROM documents WHERE collection = ? AND document_id = ?", (key, document_id)
    ).fetchone()
    _keep_former_passages(connection, document_key, {c.text for c in chunks})
    connection.execute("DELETE FROM chunks WHERE document = ?", (document_key,))
    # Entries are consecutive from a random start: never used twice, not even after the catalog was
    # restored from a backup that is older than the index files beside it.
    first = secrets.randbits(62)
    connection.executemany(
        "INSERT INTO chunks (entry, document, ordinal, chunk_id, token_ids, text, title, url,"
        " start_char, end_char, headings, opening, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (first + ordinal, document_key, ordinal, *_chunk_row(document_id, c))
            for ordinal, c in enumerate(chunks)
        ],
    )
    put_vectors(connection, range(first, first + len(chunks)), vectors, space)


def _chunk_row(document_id: str, c: Chunk) -> list[Any]:
    """`CHUNK_COLUMNS` of a chunk, less the document's id: that is in the checksum alone."""
    fields = [
        c.chunk_id, pack_token_ids(c.token_ids), c.text, document_id, c.title, c.url,
        c.start_char, c.end_char, json.dumps(c.headings, ensure_ascii=False), c.opening,
    ]  # fmt: skip
    return [*fields[:3], *fields[4:], row_checksum(fields)]


def _keep_former_passages(
    connection: sqlite3.Connection, document_key: int, stay: Collection[str]
) -> None:
    """Keep the texts of the document's chunks that are about to be replaced, for links to them."""
    former = connection.execute("SELECT text FROM chunks WHERE document = ?", (document_key,))
    now = time.time()
    connection.executemany(
        "INSERT OR REPLACE INTO former_passages VALUES (?, ?, ?, ?)",
        [
            (document_key, passage_digest(text), text, now)
            for (text,) in former.fetchall()
            if text not in stay
        ],
    )


def drop_former_passages(connection: sqlite3.Connection, older_than_s: float) -> None:
    """Forget what no link shows any more."""
    now = time.time()
    connection.execute("DELETE FROM former_passages WHERE replaced_at < ?", (now - older_than_s,))
    # the clock was set back: what is of the future would outlive its time
    connection.execute("UPDATE former_passages SET replaced_at = ?1 WHERE replaced_at > ?1", (now,))


def put_vectors(
    connection: sqlite3.Connection, entries: Sequence[int], vectors: np.ndarray, space: str
) -> None:
    """Write vectors `[len(entries), dim]` of chunks, in place of those they had."""
    packed = np.ascontiguousarray(vectors, dtype="<f4")
    connection.executemany(
        "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
        [(entry, space, vector.tobytes()) for entry, vector in zip(entries, packed, strict=True)],
    )
