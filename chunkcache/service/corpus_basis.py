"""A basis for the codecs `basis` and `joint`, fitted to the chunks of a collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.errors import NotFound
from chunkcache.store.codec.basis import fit_basis, write_basis
from chunkcache.store.codec.joint import fit_joint_basis, write_joint_basis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from chunkcache.chunk import Chunk, ChunkKV
    from chunkcache.service.runtime import Runtime


def fit_corpus_basis(
    runtime: Runtime, chunks: Iterable[Chunk], salt: bytes, folder: Path, *,
    most_chunks: int, layers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:  # fmt: skip
    """Fit a basis to chunks taken at even distances, keep it, and return the digest that names it.

    Their KV is computed afresh: what a lossy codec stored is no measure.

    Args:
        layers: how many go together: 1 for the codec `basis`, more for `joint`.
        on_progress: told after each chunk how many have been computed, and of how many.

    Raises:
        NotFound: there are no chunks.
        StoreError: so many layers are too large a group.
    """
    keys = list(dict.fromkeys(runtime.key(runtime.prompts.chunk_ids(c), salt) for c in chunks))
    if not keys:
        raise NotFound("There are no chunks to fit a basis to. Hint: ingest documents first.")
    step = -(-len(keys) // most_chunks)
    chosen = keys[::step]
    records = _told_of(runtime.compute(chosen, salt), len(chosen), on_progress)
    if layers == 1:
        return write_basis(fit_basis(records), folder)
    return write_joint_basis(fit_joint_basis(records, layers), folder)


def _told_of(
    records: Iterator[ChunkKV], total: int, on_progress: Callable[[int, int], None]
) -> Iterator[ChunkKV]:
    for done, record in enumerate(records, start=1):
        on_progress(done, total)
        yield record
