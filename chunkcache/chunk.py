"""The nouns: Chunk, ChunkKey, KVGeometry, ChunkStats, Terms, ChunkKV, Span, Rung.

One word, one meaning; ARCHITECTURE.md has the table. This module imports numpy only; the tensors a
`ChunkKV` holds are torch's, but nothing here calls into torch.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch


class Rung(StrEnum):
    """How exact a span's KV is; the ladder of exactness, from best to most approximate."""

    FULL = "full"  # every row computed in this very context
    EXACT = "exact"  # reused, and identical in content to what full prefill would compute
    REPAIRED = "repaired"  # reused from another context, some rows recomputed


class SpanKind(StrEnum):
    """Where a run of prompt tokens comes from."""

    HEAD = "head"  # everything before the first chunk: BOS, system text, opening of the documents
    CHUNK = "chunk"
    HISTORY = "history"  # earlier turns of the conversation
    QUESTION = "question"  # the last user turn and the tokens that open the answer


def pack_token_ids(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32, the one byte form that is hashed, stored and compared.

    Raises:
        OverflowError: an id below 0 or above 2³²-1.
    """
    packed = array("I", token_ids)
    if packed.itemsize != 4:  # pragma: no cover - no supported platform
        raise TypeError("array('I') is not 32 bits here")
    if sys.byteorder == "big":  # pragma: no cover - no machine to test on
        packed.byteswap()
    return packed.tobytes()


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """Identity of one chunk's KV: what was computed, by what, after what, for whom.

    `digest` is BLAKE2b-256 over token ids ‖ model fingerprint ‖ born prefix ‖ adapter ‖ tenant
    salt, each length-prefixed so that no two field splits collide. Equality compares the token ids
    too, so that even a digest collision is a miss and never a wrong answer.
    """

    digest: bytes
    token_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        token_ids: Sequence[int],
        *,
        fingerprint: bytes,
        born_prefix: Sequence[int],
        salt: bytes,
        adapter: str = "",
    ) -> ChunkKey:
        """The key of `token_ids` computed after `born_prefix` (token ids, usually the head)."""
        hasher = hashlib.blake2b(digest_size=32, person=b"chunkcache/1")
        fields = (
            pack_token_ids(token_ids),
            fingerprint,
            pack_token_ids(born_prefix),
            adapter.encode(),
            salt,
        )
        for field in fields:
            hasher.update(len(field).to_bytes(8, "little"))
            hasher.update(field)
        return cls(hasher.digest(), tuple(token_ids))

    def __hash__(self) -> int:
        return int.from_bytes(self.digest[:8], "little")

    @property
    def hex(self) -> str:
        """The digest in hexadecimal, for logs and reports."""
        return self.digest.hex()


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """Shape and number type of a model's KV: `[num_layers, 2, tokens, heads, dim]`."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str  # "float32", "bfloat16" or "float16"
    rope: str  # canonical description of the rotary embedding, part of the fingerprint

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "float32" else 2

    @property
    def bytes_per_token(self) -> int:
        """KV bytes of one token over all layers: 2 · layers · kv_heads · head_dim · itemsize."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.itemsize_bytes


@dataclass(frozen=True, slots=True, eq=False)
class ChunkStats:
    """Where a chunk's queries looked when its KV was made (Cache-Craft, arXiv 2502.15734, §3).

    All masses are means over layers and query heads of softmax attention, so that for every token
    `token_inter + token_head + own mass = 1` and for the chunk
    `sum(chunk_inter) + sum(token_head) + intra = num_tokens`. The head (BOS, system text) is kept
    apart from `inter`: it is in every prompt, and its attention sink would drown everything else.
    Learned sinks of a layer, which are no tokens, take no share (docs/concepts/repair.md).
    """

    token_inter: np.ndarray  # float32 [num_tokens]: mass each token put on earlier chunks
    token_head: np.ndarray  # float32 [num_tokens]: mass each token put on the head
    chunk_inter: np.ndarray  # float32 [num_prior_chunks]: mass put on each earlier chunk
    intra: float  # mass the chunk put on itself
    prior_digests: tuple[bytes, ...] = ()  # content digests of the earlier chunks, in order
    prior_lengths: tuple[int, ...] = ()  # their token counts


class Retention(IntEnum):
    """How firmly a record is kept, from loosest to firmest."""

    PASSING = 0  # of a document in a request's body: never pushes out what was warmed
    NORMAL = 1
    WARMED = 2  # of a corpus that somebody asked to be kept warm
    PINNED = 3  # leaves by `delete`, `gc` or when it has expired; of half a tier at most


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a record is kept; changes neither what it is nor whether it may be served."""

    tenant: str = ""
    priority: int = 0  # a hit is worth 2^priority of another's
    retention: Retention = Retention.NORMAL
    expires_s: float = math.inf  # Unix time; soft: first to leave from then on, served until it has

    def after(self, former: Terms, now_s: float) -> Terms:
        """Terms of a record that takes the place of one of the same chunk: `former`, unless these
        are firmer or it has expired."""
        is_over = former.expires_s <= now_s
        return self if is_over or self.retention > former.retention else former


USUAL_TERMS = Terms()


@dataclass(frozen=True, slots=True, eq=False)
class ChunkKV:
    """A chunk's KV as made once: K before RoPE (after any k-norm), V, and attention statistics.

    `kv` is a CPU tensor `[num_layers, 2, num_tokens, num_kv_heads, head_dim]`, index 0 of the
    second axis is K; it must not be written to after construction. `rounded_by` is the lossy codec
    that it was read through; None: it is as it was computed, bit for bit.
    """

    key: ChunkKey
    geometry: KVGeometry
    kv: torch.Tensor
    stats: ChunkStats
    terms: Terms = USUAL_TERMS
    rounded_by: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens in the chunk."""
        return len(self.key.token_ids)

    @property
    def size_bytes(self) -> int:
        """Bytes of the KV itself; statistics and headers are small beside it."""
        return self.num_tokens * self.geometry.bytes_per_token

    @property
    def is_finite(self) -> bool:
        """Whether all of it are finite numbers; looks at each, once (3 ms for 24 MB)."""
        return all_finite(self.kv)


def all_finite(kv: torch.Tensor) -> bool:
    """Whether all of it are finite numbers; waits for the device where it is on one."""
    low, high = kv.aminmax()  # NaN if there is any; `isfinite` takes forty times as long
    return bool(low.isfinite() & high.isfinite())


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document and its token ids, tokenised on its own: the unit of caching.

    `text` is the document's own, at its offsets. `headings` and `opening` say where it stands and
    what it goes on from; they are prompted and embedded with it, so they are part of what its KV
    is computed from, and they are in no offset.
    """

    chunk_id: str
    token_ids: tuple[int, ...]
    text: str
    document_id: str = ""
    title: str = ""
    url: str = ""
    start_char: int = 0  # character offsets into the document's text, for citations
    end_char: int = 0
    score: float = 0.0
    headings: tuple[str, ...] = ()  # of the sections it is in, outermost first
    opening: str = ""  # of what it continues: a table's header, a code block's first line
    collection: str = ""  # where it is; empty: in the one that was asked

    @property
    def lead(self) -> str:
        """What stands before the text in a prompt: whole lines, or nothing."""
        path = [part for part in (self.title, *self.headings) if part]
        lines = [f"{'#' * depth} {heading}" for depth, heading in enumerate(path, start=1)]
        return "".join(f"{line}\n" for line in (*lines, self.opening) if line)


@dataclass(frozen=True, slots=True)
class Span:
    """A run of prompt tokens with one origin, at `[start, start + len(token_ids))`.

    A passage that was found in a message has `passage_ids`: what its chunk takes in a prompt, with
    title and all, of which the span is the part from `first_row` on.
    """

    kind: SpanKind
    start: int
    token_ids: tuple[int, ...]
    chunk: Chunk | None = None
    passage_ids: tuple[int, ...] | None = None
    first_row: int = 0

    @property
    def end(self) -> int:
        """Position just after the span's last token."""
        return self.start + len(self.token_ids)

    @property
    def record_ids(self) -> tuple[int, ...]:
        """The token ids of the record that the span's rows may be read from."""
        return self.token_ids if self.passage_ids is None else self.passage_ids

    def __len__(self) -> int:
        return len(self.token_ids)


def content_digest(token_ids: Sequence[int]) -> bytes:
    """Digest of a chunk's tokens alone: names it in statistics, never used to look up KV."""
    return hashlib.blake2b(pack_token_ids(token_ids), digest_size=16).digest()
