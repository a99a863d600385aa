"""The C kernels are built once for a machine, whole or not at all; without a compiler, said why."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chunkcache_kernels import compiler
from chunkcache_kernels.compiler import NoCompiler, build_library, find_compiler

SCRIPT = """#!/bin/sh
if [ "$1" = --version ]; then echo "made up 1.0"; exit 0; fi
echo "$@" >> {log}
{work}
"""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down what it was told and copies a file; `log` beside it."""
    path = tmp_path / "bin" / "cc"
    path.parent.mkdir()
    work = 'while [ "$1" != -o ]; do shift; done; echo library > "$2"'
    path.write_text(SCRIPT.format(log=path.parent / "log", work=work))
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return path


def calls(path: Path) -> list[str]:
    log = path.parent / "log"
    return log.read_text().splitlines() if log.exists() else []


def left_behind(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "native").iterdir())


def test_no_compiler_on_the_path_is_said_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompiler, match=r"cc, gcc or clang.*Hint: install gcc"):
        build_library(tmp_path / "cache", 8)
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_was_named_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(NoCompiler, match="no-such-compiler"):
        find_compiler()


def test_the_first_compiler_there_is_is_taken(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(made_up.parent))
    assert find_compiler() == str(made_up)


def test_a_failing_compiler_is_quoted_and_leaves_nothing(made_up: Path, tmp_path: Path) -> None:
    work = "echo 'error: no such instruction' >&2; exit 1"
    made_up.write_text(SCRIPT.format(log=made_up.parent / "log", work=work))
    with pytest.raises(NoCompiler, match="failed: error: no such instruction"):
        build_library(tmp_path / "cache", 8)
    assert left_behind(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_written_is_no_crash(made_up: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(NoCompiler, match="could not be built in"):
        build_library(tmp_path / "cache", 8)


def test_a_compiler_that_never_ends_is_given_up(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.write_text(SCRIPT.format(log=made_up.parent / "log", work="exec sleep 60"))
    monkeypatch.setattr(compiler, "_LIMIT_S", 0.2)
    with pytest.raises(NoCompiler, match="timed out"):
        build_library(tmp_path / "cache", 8)
    assert left_behind(tmp_path / "cache") == []


def test_a_library_that_is_there_is_not_built_again(made_up: Path, tmp_path: Path) -> None:
    first = build_library(tmp_path, 8)
    assert build_library(tmp_path, 8) == first and len(calls(made_up)) == 1
    assert "-DPAGE=8" in calls(made_up)[0]
    other = build_library(tmp_path, 32)
    assert other != first and len(calls(made_up)) == 2


def test_another_source_flag_compiler_or_processor_is_another_library(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {build_library(tmp_path, 8)}
    sources = Path(shutil.copytree(compiler._FOLDER, tmp_path / "native of another version"))
    with (sources / "rows.h").open("a") as file:
        file.write("/* another */\n")
    for name, value in (
        ("_FOLDER", sources), ("_FLAGS", (*compiler._FLAGS, "-g")),
        ("_processor", lambda: "another"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(compiler, name, value)
            found.add(build_library(tmp_path, 8))
    made_up.write_text(made_up.read_text().replace("made up 1.0", "made up 1.1"))
    found.add(build_library(tmp_path, 8))
    assert len(found) == 5


def test_two_processes_that_build_at_once_get_one_whole_library(
    made_up: Path, tmp_path: Path
) -> None:
    wait = "for i in $(seq 600); do [ $(wc -l < {log}) -ge 2 ] && break; sleep 0.05; done"
    both = wait.format(log=made_up.parent / "log")
    made_up.write_text(made_up.read_text().replace("while", f"{both}\nwhile"))
    program = (
        "import sys; from pathlib import Path; from chunkcache_kernels.compiler import "
        "build_library; path = build_library(Path(sys.argv[1]), 8); print(path, path.read_text())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(calls(made_up)) == 2
    (only,) = said
    path, content = only.split()
    assert content == "library" and left_behind(tmp_path) == [Path(path).name]


def test_elsewhere_than_on_linux_there_are_no_kernels(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.platform, "system", lambda: "Darwin")
    with pytest.raises(NoCompiler, match="Linux, this is Darwin"):
        build_library(tmp_path, 8)
