"""The status of the service, and a tenant's records: listed in pages, and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from chunkcache.errors import StoreError
from chunkcache.keep import Keep


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
            "object": "chunkcache.quota", "tenant": "one", "limit_bytes": None,
            "disk_bytes": 250 * 4096,
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
    missing = http.post(path, json={"document_ids": [*ids, "doc-none"]})
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "document_ids")
    assert http.post(path, json={"document_ids": []}).status_code == 400
    assert http.post(path, json={"document_ids": ids * 101}).status_code == 400
    assert served.service.warmed == []
    served.service.kv_states = None  # it is answered at once: no tier is asked for their KV
    started = http.post(path, json={"document_ids": ids})
    assert started.json()["state"] == "running"
    second = http.post(path, json={"document_ids": ids})
    assert second.status_code == 400
    assert second.json()["error"]["message"].startswith("A warm-up is running already")
    assert second.json()["error"]["param"] is None, "this route has no `action`"
    http.post("/v1/chunkcache/warm_up", json={"action": "stop"})
    served.service.warm_steps.release()
    served.service.console.warm_ups._jobs["public"].join(20)
    assert served.service.warmed == [ids]


def test_texts_are_warmed_ahead_on_the_terms_that_are_said(served: Any, http: httpx.Client) -> None:
    path = "/v1/chunkcache/cache/prefetches"
    texts = ["Owls hunt.", {"title": "Cats", "text": "Cats purr."}]
    terms = {"retention": "pinned", "priority": 3, "expires_after_s": 60}
    assert http.post(path, json={"texts": texts, **terms}).json()["vector_store_id"] is None
    served.service.warm_steps.release(100)
    served.service.console.warm_ups._jobs["public"].join(20)
    assert served.service.warmed == [["Owls hunt.", "Cats purr."]]
    assert served.service.warmed_on == [Keep(**terms)]
    assert http.post(path, json={"texts": texts, "priority": 1}).status_code == 200
    served.service.console.warm_ups._jobs["public"].join(20)
    assert served.service.warmed_on[1] == Keep(retention="warmed", priority=1)


@pytest.mark.parametrize("path", ["prefetches", "terms"])
@pytest.mark.parametrize("named", ["vs_none", ""])
def test_a_store_beside_texts_must_be_there(
    path: str, named: str, served: Any, http: httpx.Client
) -> None:
    wish = {"texts": ["Owls hunt."], "vector_store_id": named}
    refused = http.post(f"/v1/chunkcache/cache/{path}", json=wish)
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == f"No such vector store: '{named}'."
    assert refused.json()["error"]["param"] == "vector_store_id"
    assert served.service.warmed == served.service.keeping.asked == []


@pytest.mark.parametrize("path", ["prefetches", "terms"])
@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({}, "document_ids or texts"),
        ({"texts": ["a"], "document_ids": ["b"]}, "document_ids or texts"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", " \n"]}, "texts.1"),
        ({"texts": [{"title": "no text"}]}, "text"),
        ({"texts": ["a"], "retention": "for ever"}, "retention"),
        ({"texts": ["a"], "priority": 17}, "priority"),
        ({"texts": ["a"], "priority": True}, "priority: got True"),
        ({"texts": ["a"], "expires_after_s": True}, "expires_after_s: got True"),
        ({"texts": ["a"], "expires_after_s": 0}, "expires_after_s"),
        ({"texts": ["a"], "ttl": 5}, "ttl"),
    ],
)
def test_wrong_wishes_about_chunks_are_refused_by_name(
    served: Any, http: httpx.Client, path: str, wish: dict[str, Any], named: str
) -> None:
    refused = http.post(f"/v1/chunkcache/cache/{path}", json=wish)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert named in f"{error['param']} {error['message']}"
    assert served.service.warmed == [] and served.service.keeping.asked == []


def test_stored_chunks_are_put_on_other_terms(served: Any, http: httpx.Client) -> None:
    path = "/v1/chunkcache/cache/terms"
    store = served.client().vector_stores.create(name="owls").id
    pinned = {"document_ids": ["d1", "d2"], "vector_store_id": store, "retention": "pinned"}
    assert http.post(path, json=pinned).json() == {
        "object": "chunkcache.kept", "chunks": 2, "stored": 2, "warmed_only": 1,
    }  # fmt: skip
    http.post(path, json={"texts": ["Owls hunt."]})
    (first, of_first), (second, of_second) = served.service.keeping.asked
    assert (first, of_first["document_ids"]) == (Keep(retention="pinned"), ["d1", "d2"])
    assert (of_first["tenant"], of_first["collection"]) == ("public", store)
    assert second == Keep() and [text.text for text in of_second["texts"]] == ["Owls hunt."]


def test_a_server_without_keys_lets_everybody_set_the_quota(
    served: Any, http: httpx.Client
) -> None:
    path = "/v1/chunkcache/quota"
    assert http.put(path, json={"limit_bytes": 5000}).json()["limit_bytes"] == 5000
    assert http.get(path).json()["limit_bytes"] == 5000
    assert http.put(path, json={"limit_bytes": None}).json()["limit_bytes"] is None
    assert served.service.quotas.limits == {"public": None}, "no limit, whatever the settings say"
    assert http.delete(path).json()["limit_bytes"] is None
    assert served.service.quotas.limits == {}, "as the settings say"
    for wrong in ({"tenant": ""}, {"tenant": "t" * 257}, {"limit_bytes": 5}):
        refused = http.delete(path, params=wrong)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == next(iter(wrong))
    for wrong in (
        {},
        {"limit_bytes": -1},
        {"limit_bytes": "5 GB"},
        {"limit_bytes": 1 << 63},
        {"limit_bytes": True},
    ):
        refused = http.put(path, json=wrong)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "limit_bytes"


def test_with_keys_only_operators_set_quotas(
    serve_with: Callable[..., Any], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-one one\nkey-two two\n")
    keys.chmod(0o600)
    served = serve_with(api_keys_file=keys, operators=("two",))
    one = {"authorization": "Bearer key-one"}
    two = {"authorization": "Bearer key-two"}
    path, wish = "/v1/chunkcache/quota", {"tenant": "one", "limit_bytes": 7}
    with httpx.Client(base_url=served.url, timeout=20) as http:
        assert http.put(path, json=wish).status_code == 401
        for own in (wish, {"limit_bytes": 7}):
            refused = http.put(path, json=own, headers=one)
            assert refused.status_code == 403
            assert "server.operators" in refused.json()["error"]["message"]
        assert served.service.quotas.limits == {}
        assert http.put(path, json=wish, headers=two).json()["tenant"] == "one"
        assert http.get(path, headers=one).json()["limit_bytes"] == 7
        assert http.get(path, headers=two).json()["limit_bytes"] is None
        served.service.quotas.limits["gone"] = 7  # its key was taken out of the file since
        for nobody in ("oen", "public"):
            wish = {"tenant": nobody, "limit_bytes": 7}
            answers = [
                http.put(path, json=wish, headers=two),
                http.delete(path, params={"tenant": nobody}, headers=two),
            ]
            for answer in answers:
                assert answer.status_code == 400
                assert f"tenant: got '{nobody}'" in answer.json()["error"]["message"]
        gone = {"tenant": "gone"}
        assert http.delete(path, params=gone, headers=one).status_code == 403
        assert http.delete(path, params=gone, headers=two).status_code == 200
        assert served.service.quotas.limits == {"one": 7}


def test_a_quota_that_is_set_is_said_to_be_though_the_disk_cannot_be_read(
    served: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> int:
        raise StoreError("store: the disk cannot be read")

    monkeypatch.setattr(served.service.holdings, "disk_bytes", broken)
    path = "/v1/chunkcache/quota"
    assert http.put(path, json={"limit_bytes": 5}).json() == {
        "object": "chunkcache.quota", "tenant": "public", "limit_bytes": 5, "disk_bytes": None,
    }  # fmt: skip
    assert http.get(path).status_code == 500
