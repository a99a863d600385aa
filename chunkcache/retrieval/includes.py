"""Files that a reStructuredText file includes, put in their place; none from outside a folder."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.loaders import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_INCLUDE = re.compile(
    r"^(?P<indent>[ \t]*)\.\.[ \t]+(?P<kind>include|literalinclude)::[ \t]*(?P<name>[^\n]+)"
    r"(?P<options>(?:\n(?P=indent)[ \t]+:[\w-]+:[^\n]*)*)",
    re.MULTILINE,
)
_OPTION = re.compile(r"^[ \t]+:([\w-]+):[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_DEPTH_LIMIT = 8
_FILES_LIMIT = 1000


def with_includes(
    path: Path, roots: Sequence[Path], read: Callable[[Path], bytes], limit_bytes: int
) -> bytes:
    """The bytes of a file, those of reStructuredText with the files that it includes.

    A document is known by the hash of this, so an edit of an included file is an edit of it.

    Args:
        roots: folders that are ingested; without one above the file, its own folder.
    """
    data = read(path)
    if path.suffix.lower() != ".rst":
        return data
    root = next((root for root in roots if path.is_relative_to(root)), path.parent)
    text = decode(data)
    expanded = Includer(root, lambda other: decode(read(other)), limit_bytes).expand(text, path)
    return data if expanded == text else expanded.encode()


class Includer:
    """Puts included files into one text.

    Args:
        root: the folder that is read; what lies outside of it is left out, links followed.
        read: text of a file.
        limit_chars: of the text with all that is included.
    """

    def __init__(self, root: Path, read: Callable[[Path], str], limit_chars: int) -> None:
        self._root = root.resolve()
        self._read = read
        self._limit = self._left = limit_chars
        self._files = 0

    def expand(self, text: str, path: Path, depth: int = 0) -> str:
        """The text of `path` with every include directive replaced by what it names.

        One that cannot be followed (missing, outside, itself again) stays, and reads as nothing.

        Raises:
            InvalidRequest: there is more text than the limit.
        """

        def included(found: re.Match[str]) -> str:
            target = self._target(path, found["name"].strip())
            if target is None or depth == _DEPTH_LIMIT or self._files == _FILES_LIMIT:
                return found[0]
            self._files += 1
            options = dict(_OPTION.findall(found["options"]))
            part = _chosen(self._read(target), options)
            if found["kind"] == "include" and not {"literal", "code"} & options.keys():
                part = self.expand(part, target, depth + 1)
            else:
                language = options.get("language") or options.get("code", "")
                part = f".. code-block:: {language}\n\n{textwrap.indent(part, '   ')}"
            self._left -= len(part)
            if self._left < 0:
                raise InvalidRequest(
                    f"more than {self._limit} bytes with what it includes. "
                    "Hint: raise retrieval.max_file_bytes",
                    param="file",
                )
            return textwrap.indent(part, found["indent"])

        return _INCLUDE.sub(included, text)

    def _target(self, path: Path, name: str) -> Path | None:
        if name.startswith("<"):  # comes with docutils
            return None
        base = self._root if name.startswith("/") else path.parent
        try:
            target = (base / name.lstrip("/")).resolve()
            inside = target.is_relative_to(self._root) and target != path.resolve()
            return target if inside and target.is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            return None


def _chosen(text: str, options: dict[str, str]) -> str:
    """The part of an included file that its options ask for."""
    lines = text.split("\n")
    start, end = (_number(options.get(name, "")) for name in ("start-line", "end-line"))
    text = "\n".join(lines[start:end])
    for name in ("start-after", "end-before"):
        mark = options.get(name, "")
        if mark and mark in text:
            before, _, after = text.partition(mark)
            text = after if name == "start-after" else before
    return text


def _number(value: str) -> int | None:
    return int(value) if re.fullmatch(r"-?\d{1,7}", value) else None
