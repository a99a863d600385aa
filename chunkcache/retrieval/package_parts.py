"""Office files are zip archives of XML parts; some of those can be rewritten before they are read.

A part that is missing, or is not well-formed XML, is left to the reader of the whole, which says
what is wrong with the file.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lxml import etree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# what zipfile raises of a part that is damaged, encrypted, or packed in a way that it does not know
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)
# entities of a part are nobody's: none is read from elsewhere, none unfolds
_PARSER = {"resolve_entities": False, "no_network": True, "remove_comments": True}


class UnreadablePackage(Exception):
    """It is no archive, or has parts that cannot be read."""


class PackageParts:
    """The parts of an office file, and what was made of some of them."""

    def __init__(self, package: zipfile.ZipFile) -> None:
        self._package = package
        self._names = frozenset(package.namelist())
        self._trees: dict[str, Any] = {}
        self._changed: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        """The names of all parts."""
        return self._names

    def tree(self, name: str) -> Any:
        """The root element of a part; None where there is none."""
        if name not in self._trees:
            self._trees[name] = None
            if name in self._names:
                parser = etree.XMLParser(**_PARSER)
                with _reading():
                    data = self._package.read(name)
                try:
                    self._trees[name] = etree.fromstring(data, parser)
                except etree.XMLSyntaxError:
                    self._trees[name] = None  # its reader will say so
        return self._trees[name]

    def elements(self, name: str, tag: str) -> Iterator[Any]:
        """The elements of that tag, one after the other, of a part too large to be held."""
        if name not in self._names:
            return
        with _reading(), self._package.open(name) as stream:
            try:
                for _, element in etree.iterparse(stream, tag=tag, **_PARSER):
                    yield element
                    element.clear()
                    while element.getprevious() is not None:
                        del element.getparent()[0]
            except etree.XMLSyntaxError:
                return  # its reader will say so

    def change(self, name: str) -> None:
        """Note that the tree of a part is to be written."""
        self._changed.add(name)

    @property
    def is_changed(self) -> bool:
        """Whether any tree is to be written."""
        return bool(self._changed)

    def written(self) -> bytes:
        """The package with its changed parts."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
            for item in self._package.infolist():
                if item.filename in self._changed:
                    data = etree.tostring(self._trees[item.filename], encoding="UTF-8")
                else:
                    with _reading():
                        data = self._package.read(item)
                made.writestr(item.filename, data)
        return stream.getvalue()


def rewritten(data: bytes, rewrite: Callable[[PackageParts], None]) -> bytes:
    """The office file as `rewrite` leaves it; as it is where it is no archive that can be read."""
    try:
        with _reading():
            package = zipfile.ZipFile(io.BytesIO(data))
        with package:
            parts = PackageParts(package)
            rewrite(parts)
            return parts.written() if parts.is_changed else data
    except UnreadablePackage:
        return data  # damaged, encrypted, or not what its name says: the reader tells which


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise UnreadablePackage from error


def related(parts: PackageParts, name: str) -> Mapping[str, tuple[str, str]]:
    """What a part refers to: by relationship id the last word of its type, and the part's name."""
    folder, _, file = name.rpartition("/")
    root = parts.tree(f"{folder}/_rels/{file}.rels".lstrip("/"))
    found = {}
    for one in root if root is not None else ():
        if one.get("TargetMode") != "External":
            target = one.get("Target", "")
            kind = one.get("Type", "").rpartition("/")[2]
            found[one.get("Id", "")] = kind, _resolved(folder, target)
    return found


def main_part(parts: PackageParts) -> str:
    """The name of the part that is the document itself; empty where none is named."""
    return dict(related(parts, "").values()).get("officeDocument", "")


def _resolved(folder: str, target: str) -> str:
    places: list[str] = [] if target.startswith("/") else folder.split("/")
    for step in target.split("/"):
        if step == "..":
            places = places[:-1]
        elif step not in ("", "."):
            places.append(step)
    return "/".join(place for place in places if place)
