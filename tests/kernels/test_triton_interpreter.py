"""Runs the tests of Triton's kernels on CPU, in a process where its interpreter is on.

Triton reads TRITON_INTERPRET when it is imported, and transformers imports triton: by the time
this folder is collected it may be too late, and on a machine with a GPU the other tests want the
compiled kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter's process"
)
def test_the_kernels_pass_their_tests_on_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    report = tmp_path / "report.xml"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
         *(str(HERE / f"test_triton_{of}.py")
           for of in ("pages", "heads", "weights", "records", "fixed", "orders", "far")),
         str(HERE.parent / "engine" / "test_graphed.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=HERE.parents[1],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    suite = next(iter(ElementTree.parse(report).getroot()))
    assert int(suite.attrib["tests"]) > 50 and suite.attrib["skipped"] == "0", run.stdout
