"""The searched side of the catalog: entries, which are chunks as indexes know them, by an int64.

An entry means one chunk for ever: chunks are never changed, only deleted and made anew as other
entries. An index that knows its entries can therefore be brought up to date by comparing sets.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from chunkcache.errors import CorruptRecord
from chunkcache.retrieval import catalog_sql as sql

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from chunkcache.chunk import Chunk
    from chunkcache.retrieval.damage import Damage
    from chunkcache.retrieval.database import Database

    Entries = npt.NDArray[np.int64]
    Stamp = tuple[int, int, int]

_BATCH_ENTRIES = 4096
_PAGE_CHUNKS = 256
# A plus before a column (+d.collection) keeps SQLite from beginning with all that a collection has
# where a few entries are asked for.


class EntryTable:
    """Entries, vectors and chunks of a collection. Thread-safe, as the catalog is."""

    def __init__(self, database: Database, damage: Damage) -> None:
        self._database = database
        self._damage = damage

    def generations(self) -> dict[tuple[str, str], int]:
        """The generation of every collection, by tenant and id."""
        with self._database.reading() as connection:
            found = connection.execute("SELECT tenant, id, generation FROM collections").fetchall()
        return {(tenant, collection): generation for tenant, collection, generation in found}

    def all(self, tenant: str, collection: str) -> tuple[int, Entries]:
        """The collection's generation and its entries, both of one moment.

        Raises:
            NotFound: the tenant has no such collection.
        """
        with self._database.reading() as connection:
            generation = sql.generation(connection, tenant, collection)
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                "SELECT c.entry FROM chunks c JOIN documents d ON d.key = c.document "
                "WHERE d.collection = ?",
                (key,),
            ).fetchall()
        return generation, np.array([entry for (entry,) in found], np.int64)

    def passing(
        self,
        tenant: str,
        collection: str,
        passes: Callable[[dict[str, str | float | bool]], bool],
    ) -> frozenset[int]:
        """Entries of the documents whose attributes pass; like ones are asked about once.

        Raises:
            NotFound: the tenant has no such collection.
        """
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            documents = connection.execute(
                "SELECT attributes, key FROM documents WHERE collection = ? ORDER BY attributes",
                (key,),
            )
            passing = [
                document
                for attributes, alike in groupby(documents, key=itemgetter(0))
                if passes(json.loads(attributes))
                for _, document in alike
            ]
            entries = [
                entry
                for batch in _batches(passing)
                for (entry,) in connection.execute(
                    "SELECT entry FROM chunks WHERE document IN (SELECT value FROM json_each(?))",
                    (batch,),
                )
            ]
        return frozenset(entries)

    def page_of_document(
        self, tenant: str, collection: str, document_id: str, *, offset: int, limit: int
    ) -> list[Chunk]:
        """A document's chunks in order, `limit` of them from the `offset`th on; none if it is gone.

        Raises:
            NotFound: the tenant has no such collection.
        """
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                f"{sql.SELECT_CHUNKS} WHERE d.collection = ? AND d.document_id = ? "
                "ORDER BY c.ordinal LIMIT ? OFFSET ?",
                (key, document_id, limit, offset),
            ).fetchall()
        return [sql.chunk(row) for row in found]

    def without_vector(self, tenant: str, collection: str, space: str) -> Entries:
        """Entries whose vector is of another space. Raises `NotFound`."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                # crossed, so that the index of vectors is read first: few are of another space
                "SELECT c.entry FROM vectors v CROSS JOIN chunks c ON c.entry = v.entry "
                "CROSS JOIN documents d ON d.key = c.document WHERE d.collection = ?2 "
                "AND (v.embedder < ?1 OR v.embedder > ?1) ORDER BY d.key, c.ordinal",
                (space, key),
            ).fetchall()
        return np.array([entry for (entry,) in found], np.int64)

    def read(self, entries: Sequence[int] | Entries, space: str) -> tuple[Entries, np.ndarray]:
        """Those of the entries that have a vector in this space, and float32 `[n, dim]`.

        Entries that were deleted meanwhile are left out. `dim` is 0 when there is none at all.
        """
        found: list[tuple[int, bytes]] = []
        for batch in _batches(entries):
            with self._database.reading() as connection:
                found += connection.execute(
                    "SELECT entry, vector FROM vectors "
                    "WHERE entry IN (SELECT value FROM json_each(?)) AND embedder = ?",
                    (batch, space),
                ).fetchall()
        joined = np.frombuffer(b"".join(vector for _, vector in found), "<f4")
        present = np.array([entry for entry, _ in found], np.int64)
        return present, joined.astype(np.float32).reshape(len(found), -1 if found else 0)

    def write(
        self,
        tenant: str,
        collection: str,
        entries: Sequence[int] | Entries,
        vectors: np.ndarray,
        space: str,
    ) -> None:
        """Give chunks vectors in this space, in place of those they had. One transaction.

        Chunks that were deleted meanwhile are left out. Raises `NotFound`.
        """
        with self._database.writing() as connection:
            key = sql.writable_collection_key(connection, tenant, collection)
            present = {
                entry
                for (entry,) in connection.execute(
                    "SELECT c.entry FROM chunks c JOIN documents d ON d.key = c.document "
                    "WHERE +d.collection = ? AND c.entry IN (SELECT value FROM json_each(?))",
                    (key, json.dumps([int(entry) for entry in entries])),
                )
            }
            kept = [place for place, entry in enumerate(entries) if int(entry) in present]
            wanted = [int(entries[place]) for place in kept]
            sql.put_vectors(connection, wanted, np.asarray(vectors)[kept], space)
            sql.raise_generation(connection, key)

    def chunks(
        self, tenant: str, collection: str, entries: Sequence[int] | Entries
    ) -> dict[int, Chunk]:
        """Chunks of the collection by entry. Those that are gone, or damaged, are left out."""
        found: dict[int, Chunk] = {}
        for batch in _batches(entries):
            with self._database.reading() as connection:
                key = sql.collection_key(connection, tenant, collection)
                page = connection.execute(
                    f"SELECT {sql.CHUNK_COLUMNS}, c.entry FROM chunks c "
                    "JOIN documents d ON d.key = c.document WHERE +d.collection = ? "
                    "AND c.entry IN (SELECT value FROM json_each(?))",
                    (key, batch),
                ).fetchall()
            found.update({row[-1]: chunk for row, chunk in self._sound(page)})
        return found

    def searched_texts(
        self, tenant: str, collection: str, entries: Sequence[int] | Entries
    ) -> dict[int, str]:
        """What is indexed of chunks of the collection, by entry. Those gone are left out."""
        found: dict[int, str] = {}
        for batch in _batches(entries):
            with self._database.reading() as connection:
                key = sql.collection_key(connection, tenant, collection)
                page = connection.execute(
                    f"SELECT {sql.SEARCHED_COLUMNS}, c.entry FROM chunks c "
                    "JOIN documents d ON d.key = c.document WHERE +d.collection = ? "
                    "AND c.entry IN (SELECT value FROM json_each(?))",
                    (key, batch),
                ).fetchall()
            found.update({row[-1]: sql.searched(row) for row in page})
        return found

    def places(self, entries: Sequence[int]) -> dict[int, tuple[str, int]]:
        """Document ids, and which of its chunks, by entry. Those that are gone are left out."""
        found: dict[int, tuple[str, int]] = {}
        for batch in _batches(entries):
            with self._database.reading() as connection:
                page = connection.execute(
                    "SELECT c.entry, d.document_id, c.ordinal FROM chunks c "
                    "JOIN documents d ON d.key = c.document "
                    "WHERE c.entry IN (SELECT value FROM json_each(?))",
                    (batch,),
                ).fetchall()
            found.update({entry: (document, ordinal) for entry, document, ordinal in page})
        return found

    def stamp(self, tenant: str) -> Stamp:
        """Changes with every change of what the tenant has, in whichever collection."""
        with self._database.reading() as connection:
            return _stamp(connection, tenant)

    def of_tenant(self, tenant: str) -> tuple[Stamp, Entries]:
        """The stamp and the entries of all collections, both of one moment, oldest first."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT c.entry FROM chunks c JOIN documents d ON d.key = c.document "
                "JOIN collections o ON o.key = d.collection WHERE o.tenant = ? "
                "ORDER BY d.key, c.ordinal",
                (tenant,),
            ).fetchall()
            return _stamp(connection, tenant), np.array([entry for (entry,) in found], np.int64)

    def token_ids(self, entries: Sequence[int] | Entries) -> dict[int, npt.NDArray[np.uint32]]:
        """Token ids of chunks' texts by entry. Those that are gone are left out."""
        found: dict[int, npt.NDArray[np.uint32]] = {}
        for batch in _batches(entries):
            with self._database.reading() as connection:
                page = connection.execute(
                    "SELECT entry, token_ids FROM chunks "
                    "WHERE entry IN (SELECT value FROM json_each(?))",
                    (batch,),
                ).fetchall()
            found.update({entry: np.frombuffer(ids, "<u4") for entry, ids in page})
        return found

    def in_any_collection(self, tenant: str, entries: Sequence[int]) -> dict[int, Chunk]:
        """Chunks of the tenant by entry, each with its collection, but those gone or damaged."""
        found: dict[int, Chunk] = {}
        for batch in _batches(entries):
            with self._database.reading() as connection:
                page = connection.execute(
                    f"SELECT {sql.CHUNK_COLUMNS}, o.id, c.entry FROM chunks c "
                    "JOIN documents d ON d.key = c.document "
                    "JOIN collections o ON o.key = d.collection WHERE +o.tenant = ? "
                    "AND c.entry IN (SELECT value FROM json_each(?))",
                    (tenant, batch),
                ).fetchall()
            found.update(
                {r[-1]: replace(chunk, collection=r[-2]) for r, chunk in self._sound(page)}
            )
        return found

    def iterate(
        self, tenant: str, collection: str, on_damage: Callable[[CorruptRecord], None] | None = None
    ) -> Iterator[Chunk]:
        """See `Catalog.chunks`. Read in pages: no lock is held between them.

        Damaged ones are left out; `on_damage`, else the log and the metrics, is told of each.
        """
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            documents = connection.execute(
                "SELECT key FROM documents WHERE collection = ? ORDER BY key", (key,)
            ).fetchall()
        for (document,) in documents:
            after = -1
            while page := self._page(document, after):
                yield from (chunk for _, chunk in self._sound(page, on_damage))
                after = page[-1][-1]

    def _page(self, document_key: int, after: int) -> list[tuple[Any, ...]]:
        with self._database.reading() as connection:
            return connection.execute(
                f"SELECT {sql.CHUNK_COLUMNS}, c.ordinal FROM chunks c "
                "JOIN documents d ON d.key = c.document "
                "WHERE c.document = ? AND c.ordinal > ? ORDER BY c.ordinal LIMIT ?",
                (document_key, after, _PAGE_CHUNKS),
            ).fetchall()

    def of_document(self, tenant: str, collection: str, document_id: str) -> list[Chunk]:
        """A document's chunks in order, but damaged ones; none when it is gone."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                f"{sql.SELECT_CHUNKS} WHERE d.collection = ? AND d.document_id = ? "
                "ORDER BY c.ordinal",
                (key, document_id),
            ).fetchall()
        return [chunk for _, chunk in self._sound(found)]

    def vectors_by_text(
        self, tenant: str, collection: str, document_id: str, space: str
    ) -> dict[str, np.ndarray]:
        """Vectors that a document's chunks have in this space, by their searched text."""
        with self._database.reading() as connection:
            key = sql.collection_key(connection, tenant, collection)
            found = connection.execute(
                f"SELECT {sql.SEARCHED_COLUMNS}, v.vector FROM chunks c "
                "JOIN documents d ON d.key = c.document JOIN vectors v ON v.entry = c.entry "
                "WHERE d.collection = ? AND d.document_id = ? AND v.embedder = ?",
                (key, document_id, space),
            ).fetchall()
        return {
            sql.searched(row): np.frombuffer(row[-1], "<f4").astype(np.float32) for row in found
        }

    def _sound(
        self,
        page: Sequence[Sequence[Any]],
        on_damage: Callable[[CorruptRecord], None] | None = None,
    ) -> Iterator[tuple[Sequence[Any], Chunk]]:
        """Rows with their chunks, but those that are damaged: answers do without."""
        for row in page:
            try:
                chunk = sql.chunk(row)
            except CorruptRecord as error:
                (on_damage or self._damage.note_passage)(error)
            else:
                yield row, chunk


def _stamp(connection: sqlite3.Connection, tenant: str) -> Stamp:
    # a collection that goes lowers the count, one that comes has a key nobody had
    count, last, changes = connection.execute(
        "SELECT count(*), max(key), sum(generation) FROM collections WHERE tenant = ?", (tenant,)
    ).fetchone()
    return count, last or 0, changes or 0


def _batches(entries: Sequence[int] | Entries) -> list[str]:
    """Entries as JSON arrays, so that no statement grows beyond bounds."""
    plain = [int(entry) for entry in entries]
    return [json.dumps(plain[i : i + _BATCH_ENTRIES]) for i in range(0, len(plain), _BATCH_ENTRIES)]
