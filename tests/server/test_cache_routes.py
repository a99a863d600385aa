"""The status of the service, and a tenant's records: listed in pages, and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest


def test_the_status_says_how_full_tiers_are_and_how_often_they_hit(
    served: Any, http: httpx.Client
) -> None:
    metrics = served.service.metrics
    metrics.tier_records.labels("disk").set(7)
    metrics.tier_bytes.labels("disk").set(float("nan"))
    metrics.chunk_queries.labels("disk").inc(4)
    metrics.chunk_hits.labels("disk").inc(3)
    metrics.chunk_queries.labels("host").inc(0)
    found = http.get("/v1/chunkcache/status").json()
    assert found["status"] == "ok"
    assert found["started_at"] == served.service.created_at
    disk, host = found["tiers"]
    assert disk == {
        "name": "disk", "records": 7, "size_bytes": None, "queries": 4, "hits": 3,
        "hit_rate": 0.75, "evictions": 0,
    }  # fmt: skip
    assert host["hit_rate"] is None


def test_records_come_in_pages(http: httpx.Client) -> None:
    seen: list[str] = []
    after: dict[str, str] = {}
    for size in (100, 100, 50):
        page = http.get("/v1/chunkcache/cache/objects", params=after).json()
        assert len(page["data"]) == size
        seen += [record["id"] for record in page["data"]]
        assert page["last_id"] == seen[-1]
        after = {"after": seen[-1]}
    assert page["has_more"] is False
    assert len(set(seen)) == 250
    for wrong in ({"limit": 0}, {"limit": 1001}, {"order": "asc"}):
        assert http.get("/v1/chunkcache/cache/objects", params=wrong).status_code == 400


@pytest.mark.parametrize("wish", [{}, {"what": "documents"}, {"what": "all", "tenant": "two"}])
def test_nothing_is_cleared_unless_it_is_said(http: httpx.Client, wish: dict[str, str]) -> None:
    assert http.post("/v1/chunkcache/cache/clear", json=wish).status_code == 400
    assert http.get("/v1/chunkcache/cache/objects").json()["data"]


def test_a_tenant_clears_its_own_records(serve_with: Callable[..., Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-one one\nkey-two two\n")
    keys.chmod(0o600)
    served = serve_with(api_keys_file=keys)
    one = {"authorization": "Bearer key-one"}
    two = {"authorization": "Bearer key-two"}
    with httpx.Client(base_url=served.url, timeout=20) as http:
        for path in ("status", "quota", "cache/objects"):
            assert http.get(f"/v1/chunkcache/{path}").status_code == 401
        quota = http.get("/v1/chunkcache/quota", headers=one).json()
        assert quota == {
            "object": "chunkcache.quota", "limit_bytes": None, "disk_bytes": 250 * 4096,
        }  # fmt: skip
        wish = {"what": "all"}
        assert http.post("/v1/chunkcache/cache/clear", json=wish).status_code == 401
        cleared = http.post("/v1/chunkcache/cache/clear", json=wish, headers=one)
        assert cleared.json() == {"object": "chunkcache.cleared", "removed": {"disk": 250}}
        assert http.get("/v1/chunkcache/cache/objects", headers=one).json()["data"] == []
        assert len(http.get("/v1/chunkcache/cache/objects", headers=two).json()["data"]) == 100


def test_documents_are_warmed_ahead_as_the_tenant_s_warm_up(
    served: Any, http: httpx.Client
) -> None:
    info = served.service.ingest_bytes("owls.txt", b"owls", tenant="public", collection="default")
    path, ids = "/v1/chunkcache/cache/prefetches", [info.document_id]
    assert http.post(path, json={"document_ids": [*ids, "doc-none"]}).status_code == 404
    assert http.post(path, json={"document_ids": []}).status_code == 400
    assert http.post(path, json={"document_ids": ids * 101}).status_code == 400
    assert served.service.warmed == []
    started = http.post(path, json={"document_ids": ids})
    assert started.json()["state"] == "running"
    assert http.post(path, json={"document_ids": ids}).status_code == 400, "one at a time"
    http.post("/v1/chunkcache/warm_up", json={"action": "stop"})
    served.service.warm_steps.release()
    served.service.console.warm_ups._jobs["public"].join(20)
    assert served.service.warmed == [ids]
