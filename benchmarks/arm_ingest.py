"""An arm that ingests folders, each time into a new collection, and searches what it ingested."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from arm_child import memory, release_free, reset_peak


class Ingests:
    """`ChunkCache` of whichever checkout PYTHONPATH names; only its public methods are called."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import chunkcache

        where = Path(chunkcache.__file__).resolve().parent.parent
        if where != Path(settings["checkout"]).resolve():
            raise RuntimeError(f"chunkcache is imported from {where}, not {settings['checkout']}")
        self._cache = chunkcache.ChunkCache.open(**settings["open"])
        self._cache.embed(["a word"])  # loads the embedder, and compiles what it compiles
        self.facts: dict[str, Any] = {"memory_bytes": memory()["rss_bytes"]}

    def ingest(self, told: dict[str, Any]) -> dict[str, Any]:
        """Seconds, chunks, and the peak of memory after every `told["every"]` files."""
        collection = self._cache.create_collection(told["folder"]).id
        peaks: list[int] = []

        def note(done: int, total: int, name: str) -> None:
            if done % told["every"] == 0:
                peaks.append(memory()["peak_bytes"])

        release_free()
        reset_peak()
        before = memory()["rss_bytes"]
        began = time.perf_counter()
        report = self._cache.ingest([Path(told["folder"])], collection=collection, on_progress=note)
        seconds = time.perf_counter() - began
        if report.problems:
            raise RuntimeError(f"not ingested: {report.problems[:3]}")
        return {
            "seconds": seconds, "documents": report.added, "chunks": report.chunks,
            "rss_before_bytes": before, "peak_bytes": memory()["peak_bytes"], "peaks": peaks,
            "collection": collection,
        }  # fmt: skip

    def search(self, told: dict[str, Any]) -> dict[str, Any]:
        """The best passages of each query, as text and score; what each took, and the peak."""
        found, took_ms = [], []
        reset_peak()
        for query in told["queries"]:
            began = time.perf_counter()
            passages = self._cache.search(query, top_k=told["top_k"], collection=told["collection"])
            took_ms.append((time.perf_counter() - began) * 1000)
            found.append([(p.title + "\n" + p.text, p.score) for p in passages])
        return {"found": found, "took_ms": took_ms, "peak_bytes": memory()["peak_bytes"]}

    def forget(self, told: dict[str, Any]) -> dict[str, Any]:
        """Delete a collection."""
        return {"deleted": self._cache.delete_collection(told["collection"])}

    def close(self) -> None:
        """Close the cache."""
        self._cache.close()
