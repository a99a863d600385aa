"""What is to be measured on a GPU, tried on a CPU in a tiny shape: every part finds something."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["benchmarks/bench_gpu_ttft.py"])
    found = importlib.import_module("bench_gpu_ttft")
    monkeypatch.setattr(found, "REPEATS", 1)
    return found


def test_every_part_is_measured_and_written_as_it_comes(bench: Any, tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    assert bench.main(["--shape", "tiny", "--device", "cpu", "--out", str(out)]) == 0
    rows = {row["part"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert next(iter(rows)) == "gate"
    times = [f"{way} 176 {b}" for way in ("pages", "pinned", "disk") for b in bench.BUDGETS]
    for part in ("full 176", "transformers 176", *times):
        assert rows[part]["ttft_ms"] > 0, part
    for part in times:
        row = rows[part]
        inside = sum(row[name] for name in ("queue_ms", "wait_ms", "probe_ms", "compute_ms"))
        assert inside <= row["ttft_ms"] * 1.01, part
        assert row["own_kv_bytes"] < rows["full 176"]["own_kv_bytes"]
    assert rows["pages 176 0.0"]["rows"] < rows["pages 176 0.15"]["rows"] < 176
    assert rows["load 176"]["load_gb_per_s"] > 0
    assert [rows[f"decode 176 {n}"]["requests"] for n in (1, 3)] == [1, 3]
    assert all(rows[f"decode 176 {n}"]["tokens_per_s"] > 0 for n in (1, 3))
    for pages, most in (("int8", 0.7), ("int4", 0.5)):  # of them the chunks, five sixths
        part = rows[f"{pages} pages 176 {bench.ROUNDED_AT}"]
        assert part["rows"] > rows[f"pages 176 {bench.ROUNDED_AT}"]["rows"], "none is exact"
        for n in (1, 3):
            over, raw = rows[f"decode over {pages} 176 {n}"], rows[f"decode 176 {n}"]
            assert over["kv_bytes"] < most * raw["kv_bytes"] and over["step_ms"] > 0


def test_what_only_warms_up_runs_every_kernel_and_no_more(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of several lengths all shapes come at the first one, then all at the next."""
    ran: list[tuple[str, int, bool, bool]] = []

    def all_of(run: Any, shape: Any, device: Any, *, gate: bool, warm: bool) -> bool:
        ran.append((run._shape, *shape.prompts, gate, warm))
        return bool(run._shape != "qwen2.5-7b")

    monkeypatch.setattr(bench.Run, "all_of", all_of)
    bench.main(["--device", "cpu"])
    assert ran == [
        ("llama-3-8b", 8192, True, False), ("qwen2.5-7b", 8192, True, False),
        ("llama-3-8b", 32768, False, False),
    ]  # fmt: skip
    ran.clear()
    bench.main(["--warm", "--device", "cpu"])
    assert ran == [("llama-3-8b", 8192, True, True), ("qwen2.5-7b", 8192, True, True)]
    monkeypatch.undo()
    parts = "full 8", "transformers 8", "pinned 8 0.0", "disk 8 0.0", "load 8", "int4 pages 8 0.05"
    assert [p for p in parts if not p.startswith(bench.COMPILE_NOTHING)] == [
        "full 8", "int4 pages 8 0.05"
    ]  # fmt: skip


def test_what_fails_and_what_has_no_time_is_written_too(bench: Any, tmp_path: Path) -> None:
    out, clock = tmp_path / "found.jsonl", [0.0]
    run = bench.Run("tiny", 10.0, out, lambda: clock[0])

    def late() -> dict[str, Any]:
        clock[0] = 11.0
        raise ValueError("broken")

    assert run.try_part("first", lambda: {"ttft_ms": 1.0})
    assert not run.try_part("second", late)
    assert not run.try_part("third", lambda: {"ttft_ms": 2.0})
    first, second, third = map(json.loads, out.read_text().splitlines())
    assert first["ttft_ms"] == 1.0 and second["error"] == "ValueError: broken"
    assert "ttft_ms" not in third and third["skipped"] == "no time was left"
    assert run.failed == ["second"]
