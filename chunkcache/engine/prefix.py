"""Exact-prefix cache over blocks: a tree of full blocks, one per tenant. Pure, no torch.

Only blocks whose rows are exact (computed, or reused with nothing missing from their context) are
ever registered, so a match needs no label: it is the same KV that full prefill would write. Every
root is a tenant's salt, so tenants never share blocks. A block is found by the node of the block
before it and its own token ids, which are compared, never only their hash: a match is a match of
the whole prefix.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.engine.blocks import BlockPool

    Edge = tuple[bytes | int, tuple[int, ...]]  # the salt or the parent node, and a block's tokens


class PrefixCache:
    """Finds blocks that already hold the KV of a prompt's first tokens.

    Cost: one look-up per block of the match, and one more.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._found: dict[Edge, tuple[int, int]] = {}  # block, and its node
        self._edge_of: dict[int, Edge] = {}  # by block
        self._nodes = itertools.count()  # never reused: children of a forgotten node stay unfound

    def match(self, salt: bytes, token_ids: Sequence[int]) -> list[int]:
        """Retained blocks with the longest known prefix of `token_ids`; the caller releases them.

        To get logits, leave out the last token of a prompt: its row must run.
        """
        blocks: list[int] = []
        node: bytes | int = salt
        for tokens in self._full_blocks(token_ids):
            known = self._found.get((node, tokens))
            if known is None:
                break
            block, node = known
            blocks.append(block)
        self._pool.retain(blocks)
        return blocks

    def insert(self, salt: bytes, token_ids: Sequence[int], blocks: Sequence[int]) -> None:
        """Register the full blocks of an exact prefix; `blocks[i]` holds its i-th block.

        Of two blocks with the same prefix the one registered first stays. The caller holds all of
        `blocks` and writes to none of the full ones any more.
        """
        node: bytes | int = salt
        for tokens, block in zip(self._full_blocks(token_ids), blocks, strict=False):
            edge = (node, tokens)
            known = self._found.get(edge)
            if known is None:
                known = self._found[edge] = (block, self._node_of(block))
                self._edge_of[block] = edge
                self._pool.keep_when_released(block, self._forget)
            node = known[1]

    def _node_of(self, block: int) -> int:
        """A new node; or the old one of a block whose parent was forgotten and is known anew."""
        stale = self._edge_of.get(block)
        return next(self._nodes) if stale is None else self._found.pop(stale)[1]

    def _forget(self, block: int) -> None:
        del self._found[self._edge_of.pop(block)]

    def _full_blocks(self, token_ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        size = self._pool.block_size_tokens
        for start in range(0, len(token_ids) - size + 1, size):
            yield tuple(token_ids[start : start + size])
