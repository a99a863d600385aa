"""A document → its chunks and their vectors, for ingesting and for refreshing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.chunk import Chunk
from chunkcache.retrieval.documents import DocumentKind, chunk_id_of, searched_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chunkcache.retrieval.chunk_lines import GivenChunk
    from chunkcache.retrieval.documents import Document
    from chunkcache.retrieval.embedder import Embedder
    from chunkcache.retrieval.splitter import Piece, Splitter


def split_document(splitter: Splitter, document: Document) -> list[Chunk]:
    """The chunks of a document that came as one text.

    Raises:
        InvalidRequest: see `Splitter.split`.
    """
    pieces = splitter.split(document.text, markdown=document.kind is DocumentKind.MARKDOWN)
    return [_chunk(document, ordinal, piece) for ordinal, piece in enumerate(pieces)]


def _chunk(document: Document, ordinal: int, piece: Piece) -> Chunk:
    headings = headings_below(document.title, piece.headings)
    lead = "\n".join((*headings, piece.opening) if piece.opening else headings)
    return Chunk(
        chunk_id=chunk_id_of(document.document_id, ordinal, piece.text, lead),
        token_ids=piece.token_ids,
        text=piece.text,
        document_id=document.document_id,
        title=document.title,
        url=document.url,
        start_char=piece.start_char,
        end_char=piece.end_char,
        headings=headings,
        opening=piece.opening,
    )


def headings_below(title: str, headings: tuple[str, ...]) -> tuple[str, ...]:
    """The headings without the outermost one if the title says it already."""
    return headings[1:] if headings and " ".join(headings[0].split()) in title else headings


def take_chunks(
    splitter: Splitter, document: Document, given: Sequence[GivenChunk]
) -> tuple[list[Chunk], list[str]]:
    """The chunks of a document that came in chunks, as they are, and which lines were left out.

    A line with more tokens than a chunk may have, or none, is left out.
    """
    chunks, problems = [], []
    start = -2
    for ordinal, line in enumerate(given):
        start += 2  # a blank line joins chunks into the document's text
        end = start + len(line.text)
        token_ids = splitter.encode(line.text)
        if not 1 <= len(token_ids) <= splitter.chunk_tokens:
            problems.append(
                f"line {line.line} has {len(token_ids)} tokens, must have 1 to "
                f"{splitter.chunk_tokens}. Hint: split it, or raise retrieval.chunk_tokens"
            )
        else:
            name = f"{document.document_id}-{line.id}" if line.id else ""
            chunks.append(
                Chunk(
                    chunk_id=name or chunk_id_of(document.document_id, ordinal, line.text),
                    token_ids=token_ids,
                    text=line.text,
                    document_id=document.document_id,
                    title=line.title or document.title,
                    url=line.url or document.url,
                    start_char=start,
                    end_char=end,
                )
            )
        start = end
    return chunks, problems


def tokenise_again(splitter: Splitter, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Chunks as they were given, with token ids of another splitter.

    One that has become too long is split: nobody is there to be told that it is. One without a
    token is left out.
    """
    renewed = []
    for chunk in chunks:
        token_ids = splitter.encode(chunk.text)
        if len(token_ids) <= splitter.chunk_tokens:
            renewed += [replace(chunk, token_ids=token_ids)] if token_ids else []
            continue
        for part, piece in enumerate(splitter.split(chunk.text)):
            renewed.append(
                replace(
                    chunk,
                    chunk_id=f"{chunk.chunk_id}.{part}",
                    token_ids=piece.token_ids,
                    text=piece.text,
                    start_char=chunk.start_char + piece.start_char,
                    end_char=chunk.start_char + piece.end_char,
                )
            )
    return renewed


def texts_to_embed(chunks: Sequence[Chunk], known: Mapping[str, np.ndarray]) -> list[str]:
    """What must be embedded for these chunks, each text once.

    `known` holds vectors by searched text: an edited document only pays for what changed.
    """
    texts = dict.fromkeys(searched_text(chunk) for chunk in chunks)
    return [text for text in texts if text not in known]


def vectors_of(
    chunks: Sequence[Chunk], dim: int, known: Mapping[str, np.ndarray],
    made: Mapping[str, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Vectors of chunks, float32 `[len(chunks), dim]`, from those known and those made."""
    vectors = np.empty((len(chunks), dim), np.float32)
    for place, text in enumerate(map(searched_text, chunks)):
        vectors[place] = known[text] if text in known else made[text]
    return vectors


def embed_chunks(
    embedder: Embedder, chunks: Sequence[Chunk], known: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Vectors of chunks, float32 `[len(chunks), dim]`; see `texts_to_embed`."""
    texts = texts_to_embed(chunks, known)
    made = dict(zip(texts, embedder.embed(texts), strict=True)) if texts else {}
    return vectors_of(chunks, embedder.dim, known, made)
