"""How LMDB 0.9 lays out its file on 64-bit machines (mdb.c): pages, and the nodes of its trees."""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

import numpy as np

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


def address_of(key: bytes | memoryview) -> int | None:
    """Where a key lies in LMDB's map, in its leaf page; None: it is a copy, not known of where."""
    if not isinstance(key, memoryview):
        return None  # of a transaction that writes
    address: int = np.frombuffer(key, np.uint8).__array_interface__["data"][0]
    return address


def long_value_of(key: bytes | memoryview) -> LongValue | None:
    """Where the value of a key lies, which LMDB gave as a view of its map; None: not known.

    A key lies in a leaf page, behind its node's head and before the number of its value's first
    page. What is found is to be held against the page's own head: nothing else vouches for it.
    """
    address = address_of(key)
    if address is None:
        return None
    low, high, flags, length = NODE.unpack(ctypes.string_at(address - NODE.size, NODE.size))
    if flags != LONG_VALUE or length != len(key):
        return None
    (page,) = NUMBER.unpack(ctypes.string_at(address + length, NUMBER.size))
    return LongValue(page, low | high << 16)
