"""Archives of XML parts that are rewritten before they are read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import pytest

from chunkcache.retrieval.package_parts import PackageParts, rewritten

PART = "document.xml"
XML = b"<a><b/><b/></a>"


def package(method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        made.writestr(PART, XML)
    return bytearray(stream.getvalue())


def noted(data: bytearray, flag: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The package with what its directory and its part's header say of the part."""
    for signature, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = data.index(signature) + at
        data[place] |= flag
        data[place + 2] = method
    return bytes(data)


def damaged(data: bytearray) -> bytes:
    place = data.index(PART.encode()) + len(PART)
    data[place + 2] ^= 0x7F
    return bytes(data)


def by_tree(parts: PackageParts) -> None:
    assert parts.tree(PART) is not None
    parts.change(PART)


def by_elements(parts: PackageParts) -> None:
    assert len(list(parts.elements(PART, "b"))) == 2
    parts.change(PART)


@pytest.mark.parametrize("rewrite", [by_tree, by_elements])
@pytest.mark.parametrize(
    "data",
    [b"no archive", noted(package(), flag=1), noted(package(), method=99), damaged(package())],
    ids=["none", "encrypted", "packed otherwise", "damaged"],
)
def test_what_cannot_be_read_is_left_to_the_reader(
    data: bytes, rewrite: Callable[[PackageParts], None]
) -> None:
    assert rewritten(data, rewrite) == data


@pytest.mark.parametrize("error", [ValueError, RuntimeError, EOFError])
def test_a_fault_of_who_rewrites_is_none_of_the_file(error: type[Exception]) -> None:
    def rewrite(parts: PackageParts) -> None:
        parts.tree(PART)
        raise error("ours")

    with pytest.raises(error, match="ours"):
        rewritten(bytes(package()), rewrite)
