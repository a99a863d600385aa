"""What a power failure can do to LMDB's file, found before LMDB maps it.

Without an fsync per commit a power failure may leave pages that were never written, or an older
state of them. LMDB trusts its pages: such a file can end the process with a signal or an assertion.
Here it is read, never mapped. Layout of pages and nodes: lmdb_pages.py.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.store.lmdb_pages import (
    BRANCH,
    KIND,
    LEAF,
    LONG,
    LONG_VALUE,
    META_PAGE,
    NODE,
    PAGE,
    PAGE_COUNT,
    SUBTREE,
)

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = struct.Struct("<16xII16x48s48sQQ")
_TREE = struct.Struct("<IHHQQQQQ")
_FREE_LISTS = "free lists"  # the tree whose values name pages
_NO_ROOT = 2**64 - 1
_PAGE_SIZES = {1 << bits for bits in range(9, 17)}


class _DamagedError(Exception):
    """The message says where."""


def find_damage(file: Path, *, all_pages: bool) -> str | None:
    """What is wrong with a file of LMDB's, or None. One that is absent or empty is sound.

    Args:
        all_pages: look at every page of the trees and of the free lists and at the first of every
            value, not at the meta pages and the length alone. Nobody may write meanwhile. What the
            values hold is left to their checksums.

    Raises:
        OSError: the file cannot be read.

    Cost: two pages; all pages: a read per tree page and per value.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes:
            meta = _newest_meta(descriptor, size_bytes)
            if all_pages:
                _Walk(descriptor, meta).run()
    except _DamagedError as damage:
        return str(damage)
    finally:
        os.close(descriptor)
    return None


@dataclass(frozen=True, slots=True)
class _Tree:
    """What LMDB notes of one B+ tree."""

    page_bytes: int  # of the free lists' tree alone: the page size of the file
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    long_pages: int
    entries: int
    root: int

    @classmethod
    def unpack(cls, packed: bytes) -> _Tree:
        return cls(*_TREE.unpack(packed))


@dataclass(frozen=True, slots=True)
class _Meta:
    """A meta page: the roots of everything, as of one commit."""

    free: _Tree
    main: _Tree
    num_pages: int
    commit: int


def _newest_meta(descriptor: int, size_bytes: int) -> _Meta:
    first = _meta(descriptor, 0)
    if first.free.page_bytes not in _PAGE_SIZES:
        raise _DamagedError(f"meta page 0 tells a page size of {first.free.page_bytes} bytes")
    second = _meta(descriptor, first.free.page_bytes)
    newest = max(first, second, key=lambda meta: meta.commit)
    if newest.free.page_bytes != first.free.page_bytes:
        raise _DamagedError("the meta pages tell different page sizes")
    expected = newest.num_pages * newest.free.page_bytes
    if size_bytes < expected:
        raise _DamagedError(f"it is truncated: {size_bytes} bytes, expected {expected}")
    return newest


def _meta(descriptor: int, offset: int) -> _Meta:
    packed = os.pread(descriptor, PAGE.size + _META.size, offset)
    if len(packed) < PAGE.size + _META.size:
        raise _DamagedError("it is truncated: it has no two meta pages")
    flags = PAGE.unpack_from(packed)[2]
    magic, version, free, main, last_page, commit = _META.unpack_from(packed)
    if not flags & META_PAGE or (magic, version) != (_MAGIC, _VERSION):
        raise _DamagedError(f"no meta page of LMDB's at byte {offset}")
    return _Meta(_Tree.unpack(free), _Tree.unpack(main), last_page + 1, commit)


class _Walk:
    """All that can be reached from a meta page. Each page may be reached once."""

    def __init__(self, descriptor: int, meta: _Meta) -> None:
        self._descriptor = descriptor
        self._meta = meta
        self._page_bytes = meta.free.page_bytes
        self._taken = np.zeros(meta.num_pages, dtype=bool)
        self._taken[:2] = True  # the meta pages

    def run(self) -> None:
        self._tree(self._meta.free, _FREE_LISTS)
        self._tree(self._meta.main, "main")

    def _tree(self, tree: _Tree, name: str) -> None:
        self._counts = [0, 0, 0, 0]  # branch, leaf and long pages, entries
        counts, subtrees, before = self._counts, [], b""
        waiting = [(tree.root, 1)] if tree.root != _NO_ROOT else []
        while waiting:
            number, level = waiting.pop()
            page = self._page(number, LEAF if level == tree.depth else BRANCH)
            nodes = _nodes(page, number)
            if level < tree.depth:
                counts[0] += 1
                waiting += [(_child(page, at), level + 1) for at in reversed(nodes)]
                continue
            counts[1] += 1
            for at in nodes:
                key, value, flags = self._entry(page, number, at, whole=name == _FREE_LISTS)
                if name == _FREE_LISTS:
                    self._claim_free(value, number)
                elif counts[3] and key <= before:
                    raise _DamagedError(f"page {number}: its keys are out of order")
                if flags & SUBTREE:
                    subtrees.append((_Tree.unpack(value), repr(key)))
                before = key
                counts[3] += 1
        noted = [tree.branch_pages, tree.leaf_pages, tree.long_pages, tree.entries]
        if counts != noted:
            raise _DamagedError(f"tree {name}: found {counts} pages and entries, noted are {noted}")
        for subtree, key_name in subtrees:
            self._tree(subtree, key_name)

    def _page(self, number: int, kind: int) -> bytes:
        self._claim(number, 1)
        page = self._read(number, self._page_bytes)
        found, _, flags, _, _ = PAGE.unpack_from(page)
        if found != number or flags & KIND != kind:
            raise _DamagedError(f"page {number} is not what its tree says it is")
        return page

    def _entry(self, page: bytes, number: int, at: int, *, whole: bool) -> tuple[bytes, bytes, int]:
        """Key, value and flags of a leaf's node; of a long value nothing, unless it is `whole`."""
        low, high, flags, key_bytes = NODE.unpack_from(page, at)
        size, start = low | high << 16, at + NODE.size + key_bytes
        end = start + (8 if flags & LONG_VALUE else size)
        is_tree_wrong = flags & SUBTREE and size != _TREE.size
        if end > len(page) or flags & ~(LONG_VALUE | SUBTREE) or is_tree_wrong:
            raise _DamagedError(f"page {number}: an entry is not what it should be")
        value = page[start:end]
        if flags & LONG_VALUE:
            value = self._long_value(int.from_bytes(value, "little"), size, whole=whole)
        return page[at + NODE.size : start], value, flags

    def _long_value(self, number: int, size: int, *, whole: bool) -> bytes:
        self._claim(number, 1)
        page = self._read(number, PAGE.size + (size if whole else 0))
        found, _, flags, _, _ = PAGE.unpack_from(page)
        (count,) = PAGE_COUNT.unpack_from(page)
        if (found, flags & KIND) != (
            number,
            LONG,
        ) or count * self._page_bytes < size + PAGE.size:
            raise _DamagedError(f"page {number} is not the value that its entry says it is")
        self._claim(number + 1, count - 1)
        self._counts[2] += count
        return page[PAGE.size :]

    def _claim(self, number: int, count: int) -> None:
        pages = self._taken[number : number + count]
        if len(pages) < count or pages.any():
            raise _DamagedError(f"page {number} is beyond the end, or belongs to two owners")
        pages[:] = True

    def _claim_free(self, value: bytes, number: int) -> None:
        pages = np.frombuffer(value[: len(value) // 8 * 8], dtype="<u8")
        if not len(pages) or pages[0] >= len(pages):
            raise _DamagedError(f"page {number}: a free list is longer than its value")
        free = pages[1 : int(pages[0]) + 1]
        if (free >= len(self._taken)).any() or self._taken[free.astype(np.int64)].any():
            raise _DamagedError(f"page {number}: a free list names pages that are not free")
        self._taken[free.astype(np.int64)] = True

    def _read(self, number: int, length: int) -> bytes:
        found = os.pread(self._descriptor, length, number * self._page_bytes)
        if len(found) < length:
            raise _DamagedError(f"page {number} is beyond the end of the file")
        return found


def _nodes(page: bytes, number: int) -> list[int]:
    """Where the nodes of a tree page begin."""
    _, _, _, lower, upper = PAGE.unpack_from(page)
    count = (lower - PAGE.size) // 2
    if not PAGE.size < lower <= upper <= len(page):
        raise _DamagedError(f"page {number}: its bounds are {lower} and {upper}")
    nodes = struct.unpack_from(f"<{count}H", page, PAGE.size)
    if not all(upper <= at <= len(page) - NODE.size for at in nodes):
        raise _DamagedError(f"page {number}: an entry is out of its bounds")
    return list(nodes)


def _child(page: bytes, at: int) -> int:
    low, middle, high, _ = NODE.unpack_from(page, at)
    return int(low | middle << 16 | high << 32)
