"""Where a collection's index files lie, and how they are cleared away."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from chunkcache_indexes.index_file import PARTIAL_SUFFIX

if TYPE_CHECKING:
    from pathlib import Path

INDEX_SUFFIX = ".idx"
_PARTIAL_AGE_S = 3600.0  # older ones belong to nobody any more


def index_folder(root: Path, tenant: str, collection: str) -> Path:
    """The folder of a collection. A tenant's name may hold any character, so it is hashed."""
    digest = hashlib.blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=8)
    return root / f"{digest.hexdigest()}-{collection}"


def remove_index_folder(folder: Path) -> None:
    """Remove the index files of a folder, and the folder if nothing else is in it."""
    for suffix in (INDEX_SUFFIX, PARTIAL_SUFFIX):
        for path in folder.glob(f"*{suffix}"):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # absent, or something else lies in it
        folder.rmdir()


def sweep_partial_files(folder: Path) -> None:
    """Remove what killed processes left behind while they wrote."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if time.time() - path.stat().st_mtime > _PARTIAL_AGE_S:
                path.unlink()
