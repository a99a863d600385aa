"""The catalog: collections, documents, chunks and vectors of every tenant, in one SQLite file.

The catalog is the truth; index files are derived from it. Every change of what can be found is one
transaction that also raises the collection's generation, so an edited or removed document's chunks
are unreachable at once.
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.protocol import CollectionInfo
from chunkcache.retrieval import catalog_sql as sql
from chunkcache.retrieval.damage import Damage
from chunkcache.retrieval.database import Database
from chunkcache.retrieval.documents import DEFAULT_COLLECTION, passage_digest
from chunkcache.retrieval.entries import EntryTable
from chunkcache.retrieval.file_table import FileTable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from chunkcache.chunk import Chunk
    from chunkcache.errors import CorruptRecord
    from chunkcache.protocol import DocumentInfo
    from chunkcache.retrieval.documents import Attributes, Document

_NAME_LIMIT_CHARS = 256
_USE_NOTED_AFTER_S = 60.0  # a search is not worth a synced write each
_INFO = "id, name, created_at, metadata, expires_after_days, last_active_at"


class Catalog:
    """An open catalog. Thread-safe; several processes may have the same file open.

    Every method that takes a collection raises `NotFound` when the tenant has no such collection.
    Every tenant has `default`, from the beginning.

    Args:
        path: the SQLite file; made when missing.
        keep_former_s: how long the passages that an update replaced are kept, in seconds.
        damage: is told of what is damaged; None: the log alone.

    Raises:
        StoreError: the file cannot be opened, is no catalog, or was made by a newer chunkcache.
    """

    def __init__(
        self, path: Path, *, keep_former_s: float = 0.0, damage: Damage | None = None
    ) -> None:
        self._database = Database(path)
        self._keep_former_s = keep_former_s
        self.damage = damage or Damage()
        self.entries = EntryTable(self._database, self.damage)
        self.files = FileTable(self._database)

    def close(self) -> None:
        """Close the file. Idempotent; later calls of other methods raise `ShuttingDown`."""
        self._database.close()

    def together(self) -> AbstractContextManager[None]:
        """Changes that this thread makes inside are one transaction; see `Database.together`."""
        return self._database.together()

    # ------------------------------------------------------------ collections

    def create_collection(
        self,
        tenant: str,
        name: str,
        *,
        metadata: dict[str, str] | None = None,
        expires_after_days: int | None = None,
    ) -> CollectionInfo:
        """A new, empty collection. Names need not be unique; ids are random.

        Raises:
            InvalidRequest: the name is longer than 256 characters.
        """
        _check_name(name)
        now = time.time()
        made = CollectionInfo(
            id=f"vs_{secrets.token_hex(12)}", name=name, created_at=now, metadata=metadata or {},
            expires_after_days=expires_after_days, last_active_at=now,
        )  # fmt: skip
        with self._database.writing() as connection:
            connection.execute(
                f"INSERT INTO collections (tenant, {_INFO}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    tenant, made.id, made.name, made.created_at, json.dumps(made.metadata),
                    made.expires_after_days, made.last_active_at,
                ),
            )  # fmt: skip
        return made

    def change_collection(
        self,
        tenant: str,
        collection_id: str,
        *,
        name: str,
        metadata: dict[str, str],
        expires_after_days: int | None,
    ) -> CollectionInfo:
        """Give a collection another name, metadata and expiry; its time begins anew.

        Raises:
            InvalidRequest: the name is longer than 256 characters.
            NotFound: the tenant has no such collection.
        """
        _check_name(name)
        with self._database.writing() as connection:
            key = sql.writable_collection_key(connection, tenant, collection_id)
            connection.execute(
                "UPDATE collections SET name = ?, metadata = ?, expires_after_days = ?, "
                "last_active_at = ? WHERE key = ?",
                (name, json.dumps(metadata), expires_after_days, time.time(), key),
            )
        return self.collection(tenant, collection_id)

    def note_use(self, tenant: str, collection_id: str) -> None:
        """Begin the time of a collection that can expire anew, if a minute of it has passed."""
        info = self.collection(tenant, collection_id)
        since_s = time.time() - (info.last_active_at or 0.0)
        # below 0: the clock was set back, and from then on no use would be noted
        if info.expires_after_days is None or 0 <= since_s < _USE_NOTED_AFTER_S:
            return
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE collections SET last_active_at = ? WHERE tenant = ? AND id = ?",
                (time.time(), tenant, collection_id),
            )

    def collections(self, tenant: str) -> list[CollectionInfo]:
        """The tenant's collections, `default` first, then oldest first."""
        with self._database.reading() as connection:
            found = connection.execute(
                f"SELECT {_INFO} FROM collections WHERE tenant = ? ORDER BY created_at, key",
                (tenant,),
            ).fetchall()
            default = _unwritten(connection)
        known = [sql.collection_info(row) for row in found]
        default = next((info for info in known if info.id == DEFAULT_COLLECTION), default)
        return [default, *(info for info in known if info.id != DEFAULT_COLLECTION)]

    def collection(self, tenant: str, collection_id: str) -> CollectionInfo:
        """One collection. Raises `NotFound`."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_INFO} FROM collections WHERE tenant = ? AND id = ?",
                (tenant, collection_id),
            ).fetchone()
            if row is not None:
                return sql.collection_info(row)
            if collection_id != DEFAULT_COLLECTION:
                raise sql.no_collection(collection_id)
            return _unwritten(connection)

    def delete_collection(self, tenant: str, collection_id: str) -> bool:
        """Delete a collection, its documents and its index files. False: it was not there.

        `default` is emptied and stays.
        """
        with self._database.writing() as connection:
            try:
                key = sql.collection_key(connection, tenant, collection_id)
            except NotFound:
                return False
            if key is None:  # a default that was never written to
                return True
            folder = connection.execute(
                "SELECT index_folder FROM collections WHERE key = ?", (key,)
            ).fetchone()[0]
            if collection_id == DEFAULT_COLLECTION:
                connection.execute("DELETE FROM documents WHERE collection = ?", (key,))
                sql.raise_generation(connection, key)
            else:
                connection.execute("DELETE FROM collections WHERE key = ?", (key,))
        if folder is not None:
            from chunkcache.retrieval.index_folder import remove_index_folder  # loads the indexes

            remove_index_folder(Path(folder))
        return True

    def delete_tenant(self, tenant: str) -> int:
        """Delete all a tenant has, index files too. How many documents that were."""
        deleted = 0
        for collection in self.collections(tenant):
            with suppress(NotFound):  # somebody else deleted it meanwhile
                deleted += len(self.documents(tenant, collection.id))
                self.delete_collection(tenant, collection.id)
        return deleted

    def generation(self, tenant: str, collection: str) -> int:
        """A number that grows with every change of the collection's documents or vectors."""
        with self._database.reading() as connection:
            return sql.generation(connection, tenant, collection)

    def note_index_folder(self, tenant: str, collection: str, folder: Path) -> None:
        """Remember a folder of index files, to be deleted with the collection."""
        with self._database.writing() as connection:
            key = sql.writable_collection_key(connection, tenant, collection)
            connection.execute(
                "UPDATE collections SET index_folder = ? WHERE key = ?", (str(folder), key)
            )

    def index_folders(self) -> set[Path]:
        """The folders that were noted, of all collections of all tenants."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT index_folder FROM collections WHERE index_folder IS NOT NULL"
            ).fetchall()
        return {Path(folder) for (folder,) in found}

    # ------------------------------------------------------------ documents

    def documents(self, tenant: str, collection: str) -> list[DocumentInfo]:
        """Documents of a collection, by title."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                f"SELECT {sql.INFO_COLUMNS} FROM documents WHERE collection = ? "
                "ORDER BY title, document_id",
                (key,),
            ).fetchall()
        return [sql.document_info(collection, row) for row in found]

    def document_info(self, tenant: str, collection: str, document_id: str) -> DocumentInfo | None:
        """A document's entry in `documents`, or None."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            return sql.info_of(connection, key, collection, document_id)

    def document(self, tenant: str, collection: str, document_id: str) -> sql.StoredDocument | None:
        """A document with its text, to be verified, and how it was split; or None."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            return sql.stored_document(connection, key, collection, document_id)

    def reader(self, tenant: str, collection: str, document_id: str) -> str:
        """Version of what made a document's text; '' for one that is not there."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            row = connection.execute(
                "SELECT reader FROM documents WHERE collection = ? AND document_id = ?",
                (key, document_id),
            ).fetchone()
        return str(row[0]) if row is not None else ""

    def put_document(
        self,
        tenant: str,
        collection: str,
        document: Document,
        chunks: Sequence[Chunk],
        vectors: np.ndarray,
        *,
        splitter: str,
        space: str,
    ) -> DocumentInfo:
        """Add a document, or replace it with all its chunks. One transaction.

        Args:
            chunks: in order; `vectors` is float32 `[len(chunks), dim]`.
            splitter: fingerprint of the splitter that made the chunks.
            space: what the vectors mean, see `vector_space`.
        """
        with self._database.writing() as connection:
            key = sql.writable_collection_key(connection, tenant, collection)
            sql.put_document(connection, key, document, splitter, chunks)
            sql.put_chunks(connection, key, document.document_id, chunks, vectors, space)
            sql.drop_former_passages(connection, self._keep_former_s)
            sql.raise_generation(connection, key)
            info = sql.info_of(connection, key, collection, document.document_id)
        assert info is not None  # it was put in this transaction
        return info

    def replace_chunks(
        self,
        tenant: str,
        collection: str,
        read: sql.StoredDocument,
        chunks: Sequence[Chunk],
        vectors: np.ndarray,
        *,
        splitter: str,
        space: str,
    ) -> bool:
        """Give a document chunks of another splitter. False: it has changed since `read`, or gone.

        See `put_document` for the arguments. One transaction.
        """
        with self._database.writing() as connection:
            key = sql.writable_collection_key(connection, tenant, collection)
            now = sql.stored_document(connection, key, collection, read.info.document_id)
            if now is None or (now.info.sha256, now.splitter) != (read.info.sha256, read.splitter):
                return False
            sql.put_document(connection, key, now.document, splitter, chunks, now.checksum)
            sql.put_chunks(connection, key, now.info.document_id, chunks, vectors, space)
            sql.drop_former_passages(connection, self._keep_former_s)
            sql.raise_generation(connection, key)
        return True

    def set_attributes(
        self, tenant: str, collection: str, document_id: str, attributes: Attributes
    ) -> None:
        """Replace a document's attributes; nothing happens when it is gone."""
        with self._database.writing() as connection:
            key = sql.collection_key(connection, tenant, collection)
            connection.execute(
                "UPDATE documents SET attributes = ? WHERE collection = ? AND document_id = ?",
                (json.dumps(attributes), key, document_id),
            )

    def remove_document(self, document_id: str, tenant: str, collection: str) -> bool:
        """Remove a document and its chunks. False: it was not there."""
        with self._database.writing() as connection:
            key = sql.collection_key(connection, tenant, collection)
            gone = connection.execute(
                "DELETE FROM documents WHERE collection = ? AND document_id = ?", (key, document_id)
            )
            if key is not None and gone.rowcount:
                sql.raise_generation(connection, key)
        return gone.rowcount > 0

    def split_otherwise(self, tenant: str, collection: str, splitter: str) -> list[tuple[str, int]]:
        """Ids and sizes in bytes of documents whose chunks another splitter made."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                "SELECT document_id, size_bytes FROM documents "
                "WHERE collection = ?1 AND (splitter < ?2 OR splitter > ?2)",  # by the index
                (key, splitter),
            ).fetchall()
        return found

    # ------------------------------------------------------------ chunks

    def former_passage(
        self, tenant: str, collection: str, document_id: str, digest: str
    ) -> str | None:
        """The text of a passage that an update of the document has replaced, or None.

        `digest` is its `passage_digest`. Kept for `keep_former_s`, and gone with the document.
        """
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            row = connection.execute(
                "SELECT f.text FROM former_passages f JOIN documents d ON d.key = f.document "
                "WHERE d.collection = ? AND d.document_id = ? AND f.digest = ?",
                (key, document_id, digest),
            ).fetchone()
        return row[0] if row is not None and passage_digest(row[0]) == digest else None

    def chunks(
        self, tenant: str, collection: str, on_damage: Callable[[CorruptRecord], None] | None = None
    ) -> Iterator[Chunk]:
        """All chunks there are now, by document in order of addition; see `entries.iterate`."""
        self.generation(tenant, collection)  # an unknown collection is an error now, not later
        return self.entries.iterate(tenant, collection, on_damage)

    def chunks_by_id(
        self, tenant: str, collection: str, chunk_ids: Sequence[str]
    ) -> list[Chunk | None]:
        """Chunks in the order of `chunk_ids`; None for an id that is not, or no longer, there."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                f"{sql.SELECT_CHUNKS} WHERE d.collection = ? "
                "AND c.chunk_id IN (SELECT value FROM json_each(?))",
                (key, json.dumps(list(chunk_ids))),
            ).fetchall()
        by_id = {chunk.chunk_id: chunk for chunk in map(sql.chunk, found)}
        return [by_id.get(chunk_id) for chunk_id in chunk_ids]


def _unwritten(connection: sqlite3.Connection) -> CollectionInfo:
    """The default collection of a tenant who never wrote to it."""
    return CollectionInfo(
        id=DEFAULT_COLLECTION, name=DEFAULT_COLLECTION, created_at=sql.born_at(connection)
    )


def _check_name(name: str) -> None:
    if len(name) > _NAME_LIMIT_CHARS:
        raise InvalidRequest.of(
            "name", name, f"at most {_NAME_LIMIT_CHARS} characters", "give a shorter name"
        )
