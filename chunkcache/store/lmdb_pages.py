"""How LMDB 0.9 lays out its file on 64-bit machines (mdb.c): pages, and the nodes of its trees."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper; a long value: its page count
PAGE_COUNT = struct.Struct("<12xI")
NODE = struct.Struct("<HHHH")  # size or child, in two parts; flags or its third part; key length
NUMBER = struct.Struct("<Q")  # of a long value's first page, in place of the value
BRANCH, LEAF, LONG, META_PAGE = 1, 2, 4, 8  # flags of a page
KIND = BRANCH | LEAF | LONG | META_PAGE
LONG_VALUE, SUBTREE = 1, 2  # flags of a node


class LongValue(NamedTuple):
    """Where a value lies that has pages of its own: behind the head of the first of them."""

    page: int
    length: int  # bytes


def long_values_from(
    key: bytes | memoryview, page_bytes: int
) -> Iterator[tuple[bytes, LongValue | None]]:
    """`long_value_of` this key, and of those behind it in its leaf page, each with its key.

    A cursor that went on to each of them would take twice as long.
    """
    if not isinstance(key, memoryview):
        return
    address = np.frombuffer(key, np.uint8).__array_interface__["data"][0]
    begin = address - address % page_bytes  # of the page: the map is of whole ones
    page = ctypes.string_at(begin, page_bytes)
    _, _, flags, end, _ = PAGE.unpack_from(page)
    if flags & KIND != LEAF or not PAGE.size < end <= page_bytes:
        return
    nodes = [node for (node,) in struct.iter_unpack("<H", page[PAGE.size : end & ~1])]
    here = address - begin - NODE.size
    for node in nodes[nodes.index(here) if here in nodes else len(nodes) :]:
        if node + NODE.size > page_bytes:
            return
        low, high, kind, length = NODE.unpack_from(page, node)
        behind = node + NODE.size + length
        if behind + NUMBER.size > page_bytes:
            return
        (first,) = NUMBER.unpack_from(page, behind)
        place = LongValue(first, low | high << 16) if kind == LONG_VALUE else None
        yield page[node + NODE.size : behind], place


def long_value_of(key: bytes | memoryview) -> LongValue | None:
    """Where the value of a key lies, which LMDB gave as a view of its map; None: not known.

    A key lies in a leaf page, behind its node's head and before the number of its value's first
    page. What is found is to be held against the page's own head: nothing else vouches for it.
    """
    if not isinstance(key, memoryview):
        return None  # a copy: of a transaction that writes
    address = np.frombuffer(key, np.uint8).__array_interface__["data"][0]
    low, high, flags, length = NODE.unpack(ctypes.string_at(address - NODE.size, NODE.size))
    if flags != LONG_VALUE or length != len(key):
        return None
    (page,) = NUMBER.unpack(ctypes.string_at(address + length, NUMBER.size))
    return LongValue(page, low | high << 16)
