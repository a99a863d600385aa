"""Exact-prefix cache over blocks: a chain of digests, one per full block. Pure, no torch.

Only blocks whose rows are exact (computed, or reused with nothing missing from their context) are
ever registered, so a match needs no label: it is the same KV that full prefill would write. The
chain starts at the tenant's salt, so tenants never share blocks.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from chunkcache.chunk import pack_token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.engine.blocks import BlockPool


class PrefixCache:
    """Finds blocks that already hold the KV of a prompt's first tokens."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._block_of: dict[bytes, tuple[int, tuple[int, ...]]] = {}
        self._digest_of: dict[int, bytes] = {}

    def match(self, salt: bytes, token_ids: Sequence[int]) -> list[int]:
        """Retained blocks with the longest known prefix of `token_ids`; the caller releases them.

        To get logits, leave out the last token of a prompt: its row must run.
        """
        blocks: list[int] = []
        for digest, tokens in self._chain(salt, token_ids):
            known = self._block_of.get(digest)
            if known is None or known[1] != tokens:
                break
            blocks.append(known[0])
        self._pool.retain(blocks)
        return blocks

    def insert(self, salt: bytes, token_ids: Sequence[int], blocks: Sequence[int]) -> None:
        """Register the full blocks of an exact prefix; `blocks[i]` holds its i-th block."""
        for (digest, tokens), block in zip(self._chain(salt, token_ids), blocks, strict=False):
            if digest in self._block_of or block in self._digest_of:
                continue
            self._block_of[digest] = (block, tokens)
            self._digest_of[block] = digest
            self._pool.keep_when_released(block, self._forget)

    def _forget(self, block: int) -> None:
        del self._block_of[self._digest_of.pop(block)]

    def _chain(self, salt: bytes, token_ids: Sequence[int]) -> list[tuple[bytes, tuple[int, ...]]]:
        size = self._pool.block_size_tokens
        chain, parent = [], hashlib.blake2b(salt, digest_size=32, person=b"prefix/1").digest()
        for start in range(0, len(token_ids) - size + 1, size):
            tokens = tuple(token_ids[start : start + size])
            parent = hashlib.blake2b(parent + pack_token_ids(tokens), digest_size=32).digest()
            chain.append((parent, tokens))
        return chain
