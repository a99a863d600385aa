"""Hold every fast thing equal to its slow twin before anything is timed.

    python benchmarks/verify.py

Runs the tests that do that, and says which. `make bench` stops when one of them is red.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TWINS = {
    "kernels and their torch references": ["tests/kernels"],
    "packed layers and the model's own": ["tests/engine/test_packed.py"],
    "what a sequence sees of its segments, and position by position": [
        "tests/engine/test_sequence_kv.py",
        "tests/engine/test_chunk_pages.py",
    ],
    "LMDB tier and dict tier": ["tests/store/test_congruence.py"],
    "HNSW and the flat index": ["tests/indexes/test_vector_indexes.py"],
    "repair of every row and full prefill; shared prefix and unshared": [
        "tests/engine/test_generation.py",
        "tests/engine/test_probe.py",
        "tests/engine/test_prefix.py",
    ],
    "rows through the layers in parts and at once": [
        "tests/engine/test_model.py",
        "tests/engine/test_narrow.py",
    ],
}


def main() -> int:
    """Run the twin tests, one pytest per pair. Returns 1 at the first pair that differs."""
    for pair, paths in TWINS.items():
        print(f"twins: {pair}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", *paths]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            print(f"red: {pair}. No speed is reported while twins differ.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
