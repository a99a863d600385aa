"""Blocks of device KV: who holds which, and which may be given away. Pure bookkeeping, no torch.

A block is `block_size` consecutive slots. Blocks are reference-counted; a block whose last holder
lets go is free at once, or, if the prefix cache knows it, kept until its room is needed (oldest
first). `allocate` prefers a run of neighbouring blocks, because attention on CPU then reads KV in
place instead of gathering it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks with ids 0..num_blocks-1. Not thread-safe: the engine thread owns it."""

    def __init__(self, num_blocks: int, block_size_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_size_tokens = block_size_tokens
        self._free = set(range(num_blocks))
        self._references = [0] * num_blocks
        self._cached: OrderedDict[int, Callable[[int], None]] = OrderedDict()
        self._on_evict: dict[int, Callable[[int], None]] = {}

    @property
    def available(self) -> int:
        """Blocks that `allocate` could hand out now, cached ones included."""
        return len(self._free) + len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks needed to hold `num_tokens`."""
        return -(-num_tokens // self.block_size_tokens)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None when there is not enough room."""
        if count > self.available:
            return None
        while len(self._free) < count:
            self._evict_oldest()
        run = self._free_run(count)
        blocks = run if run is not None else sorted(self._free)[:count]
        for block in blocks:
            self._free.remove(block)
            self._references[block] = 1
        return blocks

    def retain(self, blocks: Iterable[int]) -> None:
        """Add a holder to blocks that are held or cached."""
        for block in blocks:
            if self._references[block] == 0:
                if block not in self._cached:
                    raise ValueError(f"block {block} is free and cannot be retained")
                del self._cached[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop a holder; later blocks of a sequence become evictable before earlier ones."""
        for block in reversed(blocks):
            if self._references[block] <= 0:
                raise ValueError(f"block {block} was released more often than retained")
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._on_evict:
                    self._cached[block] = self._on_evict[block]
                else:
                    self._free.add(block)

    def keep_when_released(self, block: int, on_evict: Callable[[int], None]) -> None:
        """Keep a held block when it is released; `on_evict` is told when its room is taken."""
        if self._references[block] == 0:
            raise ValueError(f"block {block} is not held")
        self._on_evict[block] = on_evict

    def _evict_oldest(self) -> None:
        block, on_evict = self._cached.popitem(last=False)
        del self._on_evict[block]
        self._free.add(block)
        on_evict(block)

    def _free_run(self, count: int) -> list[int] | None:
        """The tightest run of `count` neighbouring free blocks, or None."""
        best: tuple[int, int] | None = None
        start = previous = -2
        for block in [*sorted(self._free), self.num_blocks + 1]:
            if block != previous + 1:
                length = previous - start + 1
                if start >= 0 and length >= count and (best is None or length < best[0]):
                    best = (length, start)
                start = block
            previous = block
        return None if best is None else list(range(best[1], best[1] + count))

    def check(self) -> None:
        """Raise AssertionError when the books do not balance; tests call it after every step."""
        held = {b for b in range(self.num_blocks) if self._references[b] > 0}
        cached = set(self._cached)
        assert not held & self._free, "a held block is free"
        assert not cached & self._free, "a cached block is free"
        assert not held & cached, "a held block is evictable"
        assert len(held) + len(cached) + len(self._free) == self.num_blocks, "a block is lost"
        assert min(self._references) >= 0, "a block has fewer holders than none"
        assert cached <= set(self._on_evict), "nobody would hear of a cached block's eviction"
        assert self._free.isdisjoint(self._on_evict), "a free block is still to be kept"
