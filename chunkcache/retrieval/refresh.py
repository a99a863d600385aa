"""Bringing stored documents up to date with the splitter and the embedder in use.

Token ids of another tokenizer are garbage to the model, and vectors of another embedder are garbage
to the index. Both carry fingerprints; what differs is made again from the stored text, not from the
files, which may be gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from chunkcache.errors import CorruptRecord, InvalidRequest
from chunkcache.retrieval.chunking import (
    embed_chunks,
    split_document,
    texts_to_embed,
    tokenise_again,
    vectors_of,
)
from chunkcache.retrieval.documents import DocumentKind, vector_space
from chunkcache.retrieval.pipeline import embed_beside, read_ahead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from chunkcache.chunk import Chunk
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.catalog_sql import StoredDocument
    from chunkcache.retrieval.embedder import Embedder
    from chunkcache.retrieval.splitter import Splitter

log = structlog.get_logger(__name__)

_BATCH_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What was done."""

    documents: int = 0  # split again
    vectors: int = 0  # embedded again, for chunks that stayed


def refresh(
    catalog: Catalog, splitter: Splitter | None, embedder: Embedder, tenant: str, collection: str
) -> Refreshed:
    """Split again what another splitter split, and embed again what has no vector in our space.

    Nothing to do costs two queries. Otherwise the cost is that of ingesting; every document and
    every batch of vectors is one transaction, so a kill loses little and the rest is done the next
    time. A document that cannot be split any more keeps its text and has no chunks.

    Args:
        splitter: None leaves chunks as they are: for searching where no answers are made.

    Raises:
        NotFound: the tenant has no such collection.
    """
    documents = 0
    if splitter is not None:
        stale = catalog.split_otherwise(tenant, collection, splitter.fingerprint)
        if stale:
            log.warning("documents_split_again", collection=collection, documents=len(stale))
        prepare = partial(_prepare, catalog, splitter, embedder, tenant, collection)
        prepared = read_ahead(prepare, ((size_bytes, each) for each, size_bytes in stale))
        for some, made in embed_beside(embedder, prepared):
            with catalog.together():
                for one in some:
                    done = _replace(catalog, splitter, embedder, tenant, collection, one, made)
                    documents += done
    vectors = _embed_again(catalog, embedder, tenant, collection)
    return Refreshed(documents, vectors)


@dataclass(frozen=True, slots=True)
class _Split:
    """A stored document that was split again; None when it is gone."""

    stored: StoredDocument | None
    chunks: Sequence[Chunk] = ()
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Sequence[str] = ()


def _prepare(
    catalog: Catalog,
    splitter: Splitter,
    embedder: Embedder,
    tenant: str,
    collection: str,
    document_id: str,
) -> _Split:
    stored = catalog.document(tenant, collection, document_id)
    if stored is None:
        return _Split(None)
    try:
        stored.verify()
        chunks = _new_chunks(catalog, splitter, tenant, collection, stored)
    except (InvalidRequest, CorruptRecord) as error:
        if isinstance(error, CorruptRecord):
            catalog.damage.note_text(error)
        log.error("document_unsplittable", document=document_id, reason=error.message)
        chunks = []
    space = vector_space(embedder)
    known = catalog.entries.vectors_by_text(tenant, collection, document_id, space)
    return _Split(stored, chunks, known, texts_to_embed(chunks, known))


def _replace(
    catalog: Catalog,
    splitter: Splitter,
    embedder: Embedder,
    tenant: str,
    collection: str,
    one: _Split,
    made: Mapping[str, np.ndarray],
) -> bool:
    if one.stored is None:
        return False
    vectors = vectors_of(one.chunks, embedder.dim, one.known, made)
    return catalog.replace_chunks(
        tenant, collection, one.stored, one.chunks, vectors,
        splitter=splitter.fingerprint, space=vector_space(embedder),
    )  # fmt: skip


def _new_chunks(
    catalog: Catalog, splitter: Splitter, tenant: str, collection: str, stored: StoredDocument
) -> list[Chunk]:
    if stored.document.kind is not DocumentKind.CHUNKS:
        return split_document(splitter, stored.document)
    given = catalog.entries.of_document(tenant, collection, stored.info.document_id)
    return tokenise_again(splitter, given)


def _embed_again(catalog: Catalog, embedder: Embedder, tenant: str, collection: str) -> int:
    space = vector_space(embedder)
    missing = catalog.entries.without_vector(tenant, collection, space)
    if len(missing):
        reason = "their vectors are of another embedder, or of other prompts"
        log.warning(
            "chunks_embedded_again", collection=collection, chunks=len(missing), reason=reason
        )
    embedded = 0
    for start in range(0, len(missing), _BATCH_CHUNKS):
        batch = missing[start : start + _BATCH_CHUNKS]
        chunks = catalog.entries.chunks(tenant, collection, batch)
        vectors = embed_chunks(embedder, list(chunks.values()), {})
        catalog.entries.write(tenant, collection, list(chunks), vectors, space)
        embedded += len(chunks)
    return embedded
