"""Exact-prefix cache over pages: a tree of full pages, one per tenant. Pure, no torch.

Only pages whose rows are exact (computed, or reused with nothing missing from their context) are
ever registered, so a match needs no label: it is the same KV that full prefill would write. Every
root is a tenant's salt, so tenants never share pages. A page is found by the node of the page
before it and its own token ids, which are compared, never only their hash: a match is a match of
the whole prefix.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.engine.pages import PagePool

    Edge = tuple[bytes | int, tuple[int, ...]]  # the salt or the parent node, and a page's tokens


class PrefixCache:
    """Finds pages that already hold the KV of a prompt's first tokens.

    Cost: one look-up per page of the match, and one more.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._found: dict[Edge, tuple[int, int]] = {}  # page, and its node
        self._edge_of: dict[int, Edge] = {}  # by page
        self._nodes = itertools.count()  # never reused: children of a forgotten node stay unfound

    def match(self, salt: bytes, token_ids: Sequence[int]) -> list[int]:
        """Retained pages with the longest known prefix of `token_ids`; the caller releases them.

        To get logits, leave out the last token of a prompt: its row must run.
        """
        pages: list[int] = []
        node: bytes | int = salt
        for tokens in self._full_pages(token_ids):
            known = self._found.get((node, tokens))
            if known is None:
                break
            page, node = known
            pages.append(page)
        self._pool.retain(pages)
        return pages

    def insert(self, salt: bytes, token_ids: Sequence[int], pages: Sequence[int]) -> None:
        """Register the full pages of an exact prefix; `pages[i]` holds its i-th page.

        Of two pages with the same prefix the one registered first stays. The caller holds all of
        `pages` and writes to none of the full ones any more.
        """
        node: bytes | int = salt
        for tokens, page in zip(self._full_pages(token_ids), pages, strict=False):
            edge = (node, tokens)
            known = self._found.get(edge)
            if known is None:
                known = self._found[edge] = (page, self._node_of(page))
                self._edge_of[page] = edge
                self._pool.keep_when_released(page, self._forget)
            node = known[1]

    def _node_of(self, page: int) -> int:
        """A new node; or the old one of a page whose parent was forgotten and is known anew."""
        stale = self._edge_of.get(page)
        return next(self._nodes) if stale is None else self._found.pop(stale)[1]

    def _forget(self, page: int) -> None:
        del self._found[self._edge_of.pop(page)]

    def _full_pages(self, token_ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        size = self._pool.page_tokens
        for start in range(0, len(token_ids) - size + 1, size):
            yield tuple(token_ids[start : start + size])
