"""Pages of device KV: who holds which, and which may be given away. Pure bookkeeping, no torch.

Pages are reference-counted; a page whose last holder lets go is free at once, or, if the prefix
cache knows it, kept until its room is needed (oldest first).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class PagePool:
    """`num_pages` pages with ids 0..num_pages-1. Not thread-safe: the engine thread owns it."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._free = list(range(num_pages))[::-1]  # the one freed last is taken first
        self._references = [0] * num_pages
        self._cached: OrderedDict[int, Callable[[int], None]] = OrderedDict()
        self._on_evict: dict[int, Callable[[int], None]] = {}

    @property
    def available(self) -> int:
        """Pages that `allocate` could hand out now, cached ones included."""
        return len(self._free) + len(self._cached)

    def pages_for(self, num_tokens: int) -> int:
        """Pages needed to hold `num_tokens`."""
        return -(-num_tokens // self.page_tokens)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one reference each, or None when there is not enough room."""
        if count > self.available:
            return None
        while len(self._free) < count:
            self._evict_oldest()
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """Add a holder to pages that are held or cached."""
        for page in pages:
            if self._references[page] == 0:
                if page not in self._cached:
                    raise ValueError(f"page {page} is free and cannot be retained")
                del self._cached[page]
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Drop a holder; later pages of a sequence become evictable before earlier ones."""
        for page in reversed(pages):
            if self._references[page] <= 0:
                raise ValueError(f"page {page} was released more often than retained")
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._on_evict:
                    self._cached[page] = self._on_evict[page]
                else:
                    self._free.append(page)

    def keep_when_released(self, page: int, on_evict: Callable[[int], None]) -> None:
        """Keep a held page when it is released; `on_evict` is told when its room is taken."""
        if self._references[page] == 0:
            raise ValueError(f"page {page} is not held")
        self._on_evict[page] = on_evict

    def _evict_oldest(self) -> None:
        page, on_evict = self._cached.popitem(last=False)
        del self._on_evict[page]
        self._free.append(page)
        on_evict(page)

    def check(self) -> None:
        """Raise AssertionError when the books do not balance; tests call it after every step."""
        held = {b for b in range(self.num_pages) if self._references[b] > 0}
        cached, free = set(self._cached), set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert not held & free, "a held page is free"
        assert not cached & free, "a cached page is free"
        assert not held & cached, "a held page is evictable"
        assert len(held) + len(cached) + len(self._free) == self.num_pages, "a page is lost"
        assert min(self._references) >= 0, "a page has fewer holders than none"
        assert cached <= set(self._on_evict), "nobody would hear of a cached page's eviction"
        assert free.isdisjoint(self._on_evict), "a free page is still to be kept"
