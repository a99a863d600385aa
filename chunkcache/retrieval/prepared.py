"""A document on its way into the catalog: what it is made of, and what is to be written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from chunkcache.chunk import Chunk
    from chunkcache.errors import InvalidRequest
    from chunkcache.protocol import DocumentInfo
    from chunkcache.retrieval.documents import Attributes, Document


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to ingest: where it goes, what it is called, what its bytes are."""

    tenant: str
    collection: str
    document_id: str
    name: str
    size_bytes: int  # of the data, which nobody needs once it is read
    sha256: str
    attributes: Attributes | None = None
    path: Path | None = None  # of a file
    renamed: bool = False  # known by its content; it was at another path

    @property
    def where(self) -> tuple[str, str]:
        """Tenant and collection."""
        return self.tenant, self.collection


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source that was read and split, and is yet to be embedded and written.

    `problem`: it cannot be ingested. `before` alone: it is in the catalog already, as it is.
    """

    name: str  # as reports and progress show it
    source: Source | None = None
    document: Document | None = None
    chunks: Sequence[Chunk] = ()
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Sequence[str] = ()
    before: DocumentInfo | None = None
    problem: OSError | InvalidRequest | None = None
