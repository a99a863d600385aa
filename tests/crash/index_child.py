"""Builds indexes in homes, each in a process that is killed: `python index_child.py HOME…`.

The process for the n-th home kills itself, as `kill -9` would, when the n-th of the steps comes by
which index files reach the disk: a sync before, and one after, each of two renames.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from chunkcache.config import RetrievalSettings
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.embedder import HashingEmbedder
from chunkcache.retrieval.retriever import Retriever


def main() -> None:
    for steps, home in enumerate(sys.argv[1:]):
        child = os.fork()
        if not child:
            build(Path(home), steps)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def build(home: Path, steps: int) -> None:
    catalog = Catalog(home / "catalog.sqlite")
    settings = RetrievalSettings(embedder="hashing:256")
    real, left = os.fsync, steps

    def killed(file: Any) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        real(file)

    os.fsync = killed
    Retriever(catalog, HashingEmbedder(256), home / "indexes", settings).prepare(
        "public", "default"
    )


if __name__ == "__main__":
    main()
