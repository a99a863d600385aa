"""The demo's default documents: the running interpreter's own library, one page per object.

`pydoc` renders each public function and class of a list of modules to plain text, the pages that
`python -m pydoc json.dumps` shows. They are real documents, on every machine, in no package.
"""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# modules whose import does nothing but define things
MODULES = (
    "base64", "bisect", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime",
    "difflib", "fnmatch", "functools", "glob", "gzip", "hashlib", "heapq", "html", "itertools",
    "json", "math", "operator", "os.path", "pathlib", "pprint", "random", "re", "secrets", "shlex",
    "shutil", "statistics", "string", "struct", "subprocess", "tempfile", "textwrap", "threading",
    "time", "timeit", "urllib.parse", "uuid", "warnings", "zipfile", "zlib",
)  # fmt: skip
_MIN_CHARS = 200  # shorter pages are a signature and little else
_MAX_CHARS = 4000  # classes of thousands of lines would make the demo about themselves


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # differs in every process


def stdlib_pages() -> Iterator[tuple[str, str]]:
    """Name and text of each page, in the order of `MODULES`, names in alphabetical order."""
    plain: Any = vars(pydoc)["plaintext"]  # documented, and missing from the type stubs
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or dir(module)
        for name in sorted(set(names)):
            thing = getattr(module, name, None)
            if name.startswith("_") or not _is_documented_here(thing, module_name):
                continue
            text = pydoc.render_doc(thing, title="%s", renderer=plain)
            text = _ADDRESS.sub("", text)
            if _MIN_CHARS <= len(text) <= _MAX_CHARS:
                yield f"{module_name}.{name}", text


def _is_documented_here(thing: object, module_name: str) -> bool:
    if not (inspect.isroutine(thing) or inspect.isclass(thing)) or not inspect.getdoc(thing):
        return False
    home = getattr(thing, "__module__", None) or module_name
    return home.partition(".")[0].lstrip("_") in {module_name.partition(".")[0], "builtins"} or (
        module_name == "os.path"
    )


def write_pages(folder: Path) -> int:
    """Write every page as `NAME.txt` with its name as first line; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, text in stdlib_pages():
        (folder / f"{name}.txt").write_text(f"{name}\n\n{text}", encoding="utf-8")
        count += 1
    return count
