"""The catalog under kill -9, and with two processes at once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.retrieval.catalog import Catalog

if TYPE_CHECKING:
    from pathlib import Path

WRITER = """
import sys
import numpy as np
from pathlib import Path
from chunkcache.chunk import Chunk
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import Document, DocumentKind

catalog = Catalog(Path(sys.argv[1]))
for n in range(int(sys.argv[3])):
    name = f"doc-{sys.argv[2]}-{n % 3}"
    chunks = [Chunk(f"{name}.{i}", (n, i), f"{n} {i}", name) for i in range(40)]
    document = Document(name, str(n), "", str(n), n, DocumentKind.PLAIN, "x" * 20000)
    vectors = np.full((40, 64), n, np.float32)
    catalog.put_document("t", "default", document, chunks, vectors, splitter="s", space="e")
    print(n, flush=True)
"""


def start(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check_whole(catalog: Catalog) -> dict[str, int]:
    """Every document has all chunks and vectors of one and the same version; its version by id."""
    versions = {}
    for info in catalog.documents("t", "default"):
        version = int(info.title)
        chunks = catalog.entries.of_document("t", "default", info.document_id)
        assert [c.text for c in chunks] == [f"{version} {i}" for i in range(40)]
        assert (info.sha256, info.num_chunks) == (str(version), 40)
        versions[info.document_id] = version
    _, entries = catalog.entries.all("t", "default")
    present, vectors = catalog.entries.read(entries, "e")
    assert sorted(present) == sorted(entries)
    assert set(np.unique(vectors).astype(int)) == set(versions.values())
    with catalog._database.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    return versions


def test_a_killed_writer_leaves_whole_documents_and_all_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    for kill_after in (0, 4, 9):
        with start(path, "a", 10**6) as process:
            assert process.stdout is not None
            acknowledged = -1
            while acknowledged < kill_after:
                acknowledged = int(process.stdout.readline())
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        catalog = Catalog(path)
        versions = check_whole(catalog)
        assert versions[f"doc-a-{acknowledged % 3}"] >= acknowledged
        catalog.close()


def test_two_processes_make_and_write_one_catalog(tmp_path: Path) -> None:
    path = tmp_path / "new" / "catalog.sqlite"
    processes = [start(path, name, 15) for name in ("a", "b")]
    for process in processes:
        with process:
            process.communicate(timeout=60)
        assert process.returncode == 0
    catalog = Catalog(path)
    expected = {f"doc-{name}-{n}": 12 + n for name in "ab" for n in range(3)}
    assert check_whole(catalog) == expected
    assert catalog.generation("t", "default") == 30
    catalog.close()
