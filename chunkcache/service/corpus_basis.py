"""A basis for the codec `basis`, fitted to the chunks of a collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.errors import NotFound
from chunkcache.store.codec.basis import fit_basis, write_basis

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chunkcache.chunk import Chunk
    from chunkcache.service.runtime import Runtime


def fit_corpus_basis(
    runtime: Runtime, chunks: Iterable[Chunk], salt: bytes, folder: Path, *, most_chunks: int
) -> str:
    """Fit a basis to chunks taken at even distances, keep it, and return the digest that names it.

    Their KV is computed afresh: what a lossy codec stored is no measure.

    Raises:
        NotFound: there are no chunks.
    """
    keys = list(dict.fromkeys(runtime.key(runtime.prompts.chunk_ids(c), salt) for c in chunks))
    if not keys:
        raise NotFound("There are no chunks to fit a basis to. Hint: ingest documents first.")
    step = -(-len(keys) // most_chunks)
    return write_basis(fit_basis(runtime.compute(keys[::step], salt)), folder)
