"""Which document a file is: the one at its path, or one that has moved there, or a new one.

A folder that is moved, and a file that is renamed, have the content they had, at a path that is not
known, while the path that is known leads nowhere. Such a file is the document it was: it keeps its
id, and with it every link to it, its chunks and their vectors.
"""

from __future__ import annotations

import itertools
from pathlib import PurePath
from typing import TYPE_CHECKING

from chunkcache.retrieval.documents import document_id_of, title_of_name

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.protocol import DocumentInfo
    from chunkcache.retrieval.catalog import Catalog


def document_of_file(
    catalog: Catalog, tenant: str, collection: str, path: Path, sha256: str
) -> tuple[str, bool]:
    """The id of the document that a file is or will be, and whether it has moved here.

    The catalog knows the path of one that has moved when this returns. Of several that call this
    at once, one gets it.

    Args:
        path: resolved.
        sha256: of its bytes, in hexadecimal.

    Raises:
        NotFound: the tenant has no such collection.
    """
    at_path = catalog.files.at(tenant, collection, path)
    if at_path is not None:
        return at_path, False
    own = document_id_of("file", str(path))
    held = catalog.document_info(tenant, collection, own)
    if held is not None and not held.path:  # read when paths were not yet kept
        return own, False
    same_content = catalog.files.of_content(tenant, collection, sha256)
    for document_id, old in _moved_here(same_content, path):
        if catalog.files.move(tenant, collection, document_id, old, path):
            return document_id, True
    return (own if held is None else _unused_id(catalog, tenant, collection, path)), False


def reads_the_same(before: DocumentInfo, name: str) -> bool:
    """Whether the bytes that `before` was read from say the same under another file name.

    They do not when the name gave the title, which is prompted and searched with every passage, or
    when its suffix chooses another reader.
    """
    if before.name in ("", name):
        return True
    same_reader = PurePath(before.name).suffix.lower() == PurePath(name).suffix.lower()
    return same_reader and before.title != title_of_name(before.name)


def _moved_here(same_content: list[tuple[str, Path]], path: Path) -> list[tuple[str, Path]]:
    """Documents whose file has vanished; those whose path ends most like this one come first."""
    vanished = [(document_id, old) for document_id, old in same_content if _has_vanished(old)]
    return sorted(vanished, key=lambda known: -_common_ending(known[1], path))


def _has_vanished(path: Path) -> bool:
    """False also where nobody can tell: a folder that may not be read, say."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _common_ending(one: Path, other: Path) -> int:
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _unused_id(catalog: Catalog, tenant: str, collection: str, path: Path) -> str:
    """An id for a file at a path whose own id went away with the file that was there before."""
    for number in itertools.count(1):
        document_id = document_id_of("file", f"{path}\0{number}")
        if catalog.document_info(tenant, collection, document_id) is None:
            return document_id
    raise AssertionError("numbers do not end")
