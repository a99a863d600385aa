"""A file whose reader takes too much, or breaks, is refused; everything else goes on."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval import confined
from chunkcache.retrieval.confined import ReadLimits, read_confined

OPENING = """
import json, os, signal, sys, time
from chunkcache.retrieval.binary_reader import limit_resources
limits = json.loads(sys.argv[2])
limit_resources(limits["memory_bytes"], limits["cpu_s"], limits["text_bytes"])
"""
SMALL = ReadLimits(memory_bytes=256 << 20, cpu_s=1, text_bytes=1000)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`reader(code)`: what the child does instead of reading."""

    def use(code: str) -> None:
        (tmp_path / "stand_in.py").write_text(OPENING + code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(confined, "_CHILD", "stand_in")

    return use


def reason(data: bytes = b"x", limits: ReadLimits = SMALL) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_confined(".pdf", data, limits)
    assert caught.value.param == "file"
    return caught.value.message


def test_an_ordinary_file_is_read_within_small_limits(pdf: Any) -> None:
    found = read_confined(".pdf", pdf("The quick brown fox"), SMALL)
    assert (found["text"], found["problems"]) == ("The quick brown fox", [])


def test_an_ordinary_file_is_too_much_for_smaller_ones(pdf: Any) -> None:
    page = pdf("The quick brown fox")
    assert "read_memory_bytes" in reason(page, ReadLimits(memory_bytes=16 << 20))
    assert "19 bytes of text in it, at most 18" in reason(page, ReadLimits(text_bytes=18))


def test_what_unfolds_without_end_is_refused_and_the_next_file_is_read(pdf: Any) -> None:
    """A harmless one: 400 MB of blanks, for a limit of 256."""
    packed = zlib.compress(b" " * (400 << 20), 9)
    page = pdf("BT FOLDED ET").replace(b"<< /Length 12 >>\nstream\nBT FOLDED ET", b"".join(
        [f"<< /Filter /FlateDecode /Length {len(packed)} >>\nstream\n".encode(), packed]
    ))  # fmt: skip
    assert len(page) < 1 << 20
    assert f"more than {256 << 20} bytes of memory" in reason(page)
    assert read_confined(".pdf", pdf("still here"), SMALL)["text"] == "still here"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("while True: pass", "more than 1 s of processor time"),
        ("kept = [bytes(1 << 20) for _ in range(10_000)]", "broke off (exit code 1)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "broke off (SIGSEGV)"),
        ("os._exit(3)", "broke off (exit code 3)"),
        ("while True: sys.stdout.write('x' * 100_000)", "broke off"),
        ("raise ValueError('of the reader')", "broke off (exit code 1)"),
    ],
)
def test_a_reader_that_takes_too_much_or_breaks(code: str, says: str, reader: Any) -> None:
    reader(code)
    assert says in reason()


def test_a_reader_that_waits_is_ended_by_the_clock(
    reader: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    monkeypatch.setattr(confined, "_CLOCK_FACTOR", 3)
    assert "more than 3 s" in reason()
    child = (tmp_path / "pid").read_text()
    assert not Path("/proc", child).exists()


def test_what_the_reader_said_is_logged(reader: Any, logged: list[Any]) -> None:
    reader("raise ValueError('of the reader')")
    reason()
    (entry,) = logged
    assert entry["event"] == "file_reader_failed" and "of the reader" in entry["said"]


def test_a_module_in_the_current_folder_is_not_taken(
    pdf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pypdfium2.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    assert read_confined(".pdf", pdf("text"), SMALL)["text"] == "text"


def test_a_platform_without_limits_is_warned_of_once(
    pdf: Any, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    monkeypatch.setattr(confined, "_HAS_RESOURCE", False)
    confined._warn_of_missing_limits.cache_clear()
    for _ in range(2):
        read_confined(".pdf", pdf("text"), SMALL)
    assert [entry["event"] for entry in logged] == ["binary_files_without_limits"]


def test_the_child_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "faiss", "fastapi", "pydantic", "trafilatura")
    script = (
        "import sys, chunkcache.retrieval.binary_reader, chunkcache.retrieval.pdf\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
