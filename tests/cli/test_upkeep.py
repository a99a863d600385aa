"""`stats`, `gc`, `purge`, `export`, `import`, `backup`: what docs/operations.md says to type."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from chunkcache.cli.scrape import tier_figures
from chunkcache.errors import ConfigError, InvalidRequest, NotFound, ServerUnreachable
from chunkcache.metrics import Metrics
from chunkcache.protocol import CollectionInfo
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.entries import EntryTable

Run = Callable[..., Any]


@pytest.fixture
def warmed(run: Run, tmp_path: Path) -> int:
    """A home whose tenant `t` has so many records."""
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "owls.md").write_text("# Owls\n\nOwls hunt at night. They turn the head.\n")
    (folder / "cats.txt").write_text("Cats sleep a lot.\n\nThey purr when content.\n")
    run("ingest", str(folder), "--tenant", "t")
    run("warm", "--tenant", "t")
    records: int = json.loads(run("stats", "--json").stdout)["records"]
    assert records >= 2
    return records


def test_figures_of_a_store(run: Run, warmed: int) -> None:
    found = json.loads(run("stats", "--json").stdout)
    assert found["unreadable"] == 0
    assert 0 < found["size_bytes"] <= found["capacity_bytes"] == 1 << 26
    assert [(row["tenant"], row["records"]) for row in found["tenants"]] == [("t", warmed)]
    shown = run("stats").stdout
    assert f"disk: {warmed} records" in shown
    assert "raw" in shown and "cold" not in found
    cold = ("--set", "store.cold_codec=int4")
    assert json.loads(run(*cold, "stats", "--json").stdout)["cold"] == {"records": 0, "bytes": 0}
    assert "cold: 0 of them, 0 bytes, are in int4(group=32)" in run(*cold, "stats").stdout


def test_a_purge_says_what_goes_before_it_goes(run: Run, warmed: int) -> None:
    shown = run("purge", "--tenant", "t").stdout
    assert f"tenant t: {warmed} records" in shown
    assert "0 records removed. Hint: --yes" in shown
    assert "0 records" in run("purge", "--tenant", "nobody", "--yes").stdout
    assert "2 documents in 1 collections" in run("purge", "--tenant", "t", "--documents").stdout
    assert "2 documents" in run("ls", "--tenant", "t").stdout
    assert f"{warmed} records removed" in run(
        "purge", "--tenant", "t", "--documents", "--yes"
    ).stdout.replace("\n", " ")
    assert json.loads(run("stats", "--json").stdout)["records"] == 0
    assert "0 documents" in run("ls", "--tenant", "t").stdout


def test_a_collection_that_is_deleted_meanwhile_stops_no_walk_over_all_of_them(
    run: Run, warmed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, known = Catalog.collections, EntryTable.generations
    gone = CollectionInfo(id="vs_gone", name="gone", created_at=0.0)
    monkeypatch.setattr(Catalog, "collections", lambda self, tenant: [gone, *listed(self, tenant)])
    monkeypatch.setattr(
        EntryTable, "generations", lambda self: {("t", "vs_gone"): 1, **known(self)}
    )
    assert "2 sound passages of 2 documents" in run("check").stdout
    assert "0 records found" in run("gc").stdout
    shown = run("purge", "--tenant", "t", "--documents", "--yes").stdout
    assert "2 documents in 2 collections" in shown and f"{warmed} records removed" in shown


def test_records_move_and_garbage_goes(run: Run, warmed: int, tmp_path: Path) -> None:
    archive = str(tmp_path / "warm.ccar")
    assert f"{warmed} records exported" in run("export", archive, "--tenant", "t").stderr
    assert "0 records exported" in run("export", str(tmp_path / "none"), "--tenant", "x").stderr
    second = ["--home", str(tmp_path / "second")]
    shown = run(*second, "import", archive, "--tenant", "u").stdout
    assert f"{warmed} records imported, 0 were there" in shown
    assert (
        f"0 records imported, {warmed} were there"
        in run(*second, "import", archive, "--tenant", "u").stdout
    )
    assert f"of no document: {warmed} records" in run(*second, "gc").stdout
    assert f"{warmed} removed" in run(*second, "gc", "--yes").stdout
    assert "0 records found" in run(*second, "gc").stdout
    with pytest.raises(InvalidRequest, match=r"cannot read .*nowhere: No such file"):
        run(*second, "import", str(tmp_path / "nowhere"))


def test_an_export_takes_no_files_place_unless_told(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("ten years")
    with pytest.raises(InvalidRequest, match=r"must be a new file\. Hint: --overwrite"):
        run("export", str(mine))
    assert mine.read_text() == "ten years"
    run("export", str(mine), "--overwrite")
    assert mine.read_bytes().startswith(b"CHUNKAR")
    for place in ("/dev/null", str(tmp_path)):  # a file renamed over a device would replace it
        with pytest.raises(InvalidRequest, match="must be a file"):
            run("export", place, "--overwrite")
    with pytest.raises(InvalidRequest, match="in a folder that can be written"):
        run("export", str(mine / "within"))
    with pytest.raises(InvalidRequest, match="must be a path"):
        run("export", str(tmp_path / ("x" * 300)))
    assert "0 records" in run("export", str(tmp_path / "new" / "folder" / "a.ccar")).stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["home", "new", "thesis.tex"]


def test_a_backup_is_a_store_to_go_on_with(run: Run, warmed: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert f"{warmed} ok, 0 corrupt" in run("backup", str(tmp_path / "copy")).stdout
    (home / "kv").rename(home / "kv.gone")
    assert json.loads(run("stats", "--json").stdout)["records"] == 0
    (tmp_path / "copy").rename(home / "kv")
    assert "0 computed" in run("warm", "--tenant", "t").stdout
    assert f"{warmed} ok, 0 corrupt" in run("check").stdout


def test_hit_rates_of_a_running_service() -> None:
    metrics = Metrics()
    metrics.chunk_queries.labels("disk").inc(4)
    metrics.chunk_hits.labels("disk").inc(3)
    metrics.chunk_queries.labels("host").inc(0)
    metrics.tier_bytes.labels("disk").set(float("nan"))
    metrics.tier_records.labels("disk").set(7)
    metrics.recompressed.labels("disk").inc(2)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(metrics.render())

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        disk, host = tier_figures(f"{address}/")
        with pytest.raises(ServerUnreachable, match="404"):
            tier_figures(f"{address}/elsewhere")
        server.shutdown()
    assert disk == {
        "tier": "disk", "records": 7, "bytes": None, "queries": 4, "hits": 3, "evictions": None,
        "recompressed": 2, "hit_rate": 0.75,
    }  # fmt: skip
    assert host["hit_rate"] is None
    with pytest.raises(ServerUnreachable):
        tier_figures(address)
    with pytest.raises(InvalidRequest, match="an address"):
        tier_figures("nowhere")


def test_terms_and_quotas(run: Run, warmed: int) -> None:
    shown = run("keep", "--tenant", "t", "--retention", "pinned", "--priority", "2").stdout
    assert f"{warmed} of {warmed} chunks" in shown
    with pytest.raises(NotFound):
        run("keep", "doc-none", "--tenant", "t")
    run("keep", "--retention", "for ever", code=2)
    with pytest.raises(InvalidRequest, match="--expires-after-s: got -1"):
        run("keep", "--expires-after-s", "-1")
    assert "t: no limit" in run("quota", "--tenant", "t").stdout
    run("quota", "--tenant", "t", "--set", "5000")
    assert "t: 5000 bytes" in run("quota", "--tenant", "t").stdout
    for wrong in ("5 GB", "-1", "1e9", str(2**63), "9" * 5000):
        with pytest.raises(InvalidRequest, match=f"--set: got '{wrong[:9]}"):
            run("quota", "--set", wrong)
    assert "no limit" in run("quota", "--tenant", "t", "--set", "none").stdout


def test_a_quota_is_taken_back_and_set_for_those_alone_who_have_a_key(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("key t\n")
    options = ["--home", str(tmp_path), "--set", "store.quota_bytes=['t=7', 'old=9']"]
    keyed = [*options, "--set", f"server.api_keys_file='{tmp_path / 'keys'}'"]
    assert "no limit" in run.func(keyed, "quota", "--tenant", "t", "--set", "none").stdout
    back = run.func(keyed, "quota", "--tenant", "t", "--set", "Default").stdout
    assert "t: 7 bytes" in back
    assert "no limit" in run.func(keyed, "quota", "--tenant", "old", "--set", "none").stdout
    for nobody in ("public", "T", "old"):
        with pytest.raises(InvalidRequest, match=f"--tenant: got '{nobody}'.*api_keys_file"):
            run.func(keyed, "quota", "--tenant", nobody, "--set", "5")
    assert "T: 5 bytes" in run.func(options, "quota", "--tenant", "T", "--set", "5").stdout


@pytest.mark.parametrize("command", ["quota", "purge", "ls"])
def test_a_tenant_has_a_name(run: Any, tmp_path: Path, command: str) -> None:
    for wrong in ("", "t" * 257):
        with pytest.raises(InvalidRequest, match=r"--tenant: got .* of 1 to 256 characters"):
            run.func(["--home", str(tmp_path)], command, "--tenant", wrong)


def test_a_quota_needs_a_home_that_can_be_made(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"home: got .*must be a folder: .*file is none"):
        run.func(["--home", str(tmp_path / "file" / "home")], "quota", "--set", "5")
