"""The documents that are files: which one is at a path, and which have a content."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from chunkcache.retrieval import catalog_sql as sql

if TYPE_CHECKING:
    from chunkcache.retrieval.database import Database


class FileTable:
    """Documents of a collection by path and by content. Thread-safe, as the catalog is.

    Every method raises `NotFound` when the tenant has no such collection.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def at(self, tenant: str, collection: str, path: Path) -> str | None:
        """The id of the document that was read from this path, or None."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            row = connection.execute(
                "SELECT document_id FROM documents WHERE collection = ? AND path = ?",
                (key, sql.path_bytes(path)),
            ).fetchone()
        return row[0] if row is not None else None

    def of_content(self, tenant: str, collection: str, sha256: str) -> list[tuple[str, Path]]:
        """Ids and paths of the documents that were read from files of this content."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                # with a plus, so that the index of contents is read: that of paths has all files
                "SELECT document_id, path FROM documents WHERE collection = ? AND sha256 = ? "
                "AND +path IS NOT NULL ORDER BY +path",
                (key, sha256),
            ).fetchall()
        return [(document_id, Path(os.fsdecode(stored))) for document_id, stored in found]

    def move(
        self, tenant: str, collection: str, document_id: str, before: Path, path: Path
    ) -> bool:
        """Note that a document's file is at another path. False: it was not at `before` any more.

        What was read from it stays as it is.
        """
        with self._database.writing() as connection:
            key = sql.collection_key(connection, tenant, collection)
            moved = connection.execute(
                "UPDATE documents SET path = ? "
                "WHERE collection = ? AND document_id = ? AND path = ?",
                (sql.path_bytes(path), key, document_id, sql.path_bytes(before)),
            )
        return moved.rowcount > 0

    def name(
        self, tenant: str, collection: str, document_id: str, name: str, path: Path | None
    ) -> None:
        """Note what a document's file is called, and where it is."""
        with self._database.writing() as connection:
            key = sql.collection_key(connection, tenant, collection)
            connection.execute(
                "UPDATE documents SET name = ?, path = ? WHERE collection = ? AND document_id = ?",
                (name, sql.path_bytes(path), key, document_id),
            )
