"""What operators and tools read: health, version, metrics, the OpenAPI description."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import chunkcache
from chunkcache.protocol import AnswerReport


def test_health_is_the_service_s_own_statement(served: Any, http: httpx.Client) -> None:
    response = http.get("/health")
    assert (response.status_code, response.json()) == (200, served.service.health())
    served.service.drain(0)
    response = http.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "draining")


@pytest.mark.parametrize(
    ("indexes", "status"), [("opening", 503), ("level", 200), ("behind", 200), ("on demand", 200)]
)
def test_it_is_ready_once_indexes_have_been_opened(
    served: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, indexes: str, status: int
) -> None:
    state = {"status": "ok", "indexes": indexes}
    monkeypatch.setattr(served.service, "health", lambda: state)
    assert (http.get("/ready").status_code, http.get("/ready").json()) == (status, state)
    assert http.get("/health").status_code == 200
    state["status"] = "draining"
    assert http.get("/ready").status_code == 503


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/nothing"]
)
def test_a_probe_may_ask_for_the_head_alone(http: httpx.Client, path: str) -> None:
    whole, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert http.head("/v1/chat/completions").status_code == 405


def test_version(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": chunkcache.__version__}


def test_metrics_are_prometheus_text_of_this_service(served: Any, http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hello"}]})
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    counted = {s.labels["outcome"]: s.value for s in families["chunkcache_requests"].samples
               if s.name == "chunkcache_requests_total"}  # fmt: skip
    assert counted == {"started": 1}


def routes(app: Any) -> set[tuple[str, str]]:
    return {
        (method.lower(), path)
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }


def test_the_description_lists_every_route(served: Any, http: httpx.Client) -> None:
    assert http.get("/openapi.json").json() == served.app.openapi()
    assert routes(served.app) == {
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/responses"),
        ("get", "/v1/responses/{response_id}"),
        ("delete", "/v1/responses/{response_id}"),
        ("get", "/v1/responses/{response_id}/input_items"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model_id}"),
        ("post", "/v1/embeddings"),
        ("post", "/v1/files"),
        ("get", "/v1/files"),
        ("get", "/v1/files/{file_id}"),
        ("delete", "/v1/files/{file_id}"),
        ("get", "/v1/files/{file_id}/content"),
        ("post", "/v1/vector_stores"),
        ("get", "/v1/vector_stores"),
        ("post", "/v1/vector_stores/{store_id}"),
        ("post", "/v1/vector_stores/{store_id}/files/{file_id}"),
        ("get", "/v1/vector_stores/{store_id}/files/{file_id}/content"),
        ("post", "/v1/vector_stores/{store_id}/file_batches"),
        ("get", "/v1/vector_stores/{store_id}/file_batches/{batch_id}"),
        ("post", "/v1/vector_stores/{store_id}/file_batches/{batch_id}/cancel"),
        ("get", "/v1/vector_stores/{store_id}/file_batches/{batch_id}/files"),
        ("get", "/v1/vector_stores/{store_id}"),
        ("post", "/v1/vector_stores/{store_id}"),
        ("delete", "/v1/vector_stores/{store_id}"),
        ("post", "/v1/vector_stores/{store_id}/files"),
        ("get", "/v1/vector_stores/{store_id}/files"),
        ("get", "/v1/vector_stores/{store_id}/files/{file_id}"),
        ("post", "/v1/vector_stores/{store_id}/files/{file_id}"),
        ("delete", "/v1/vector_stores/{store_id}/files/{file_id}"),
        ("get", "/v1/vector_stores/{store_id}/files/{file_id}/content"),
        ("post", "/v1/vector_stores/{store_id}/file_batches"),
        ("get", "/v1/vector_stores/{store_id}/file_batches/{batch_id}"),
        ("get", "/v1/vector_stores/{store_id}/file_batches/{batch_id}/files"),
        ("post", "/v1/vector_stores/{store_id}/file_batches/{batch_id}/cancel"),
        ("post", "/v1/vector_stores/{store_id}/search"),
        ("get", "/v1/chunkcache/requests"),
        ("get", "/v1/chunkcache/figures"),
        ("get", "/v1/chunkcache/kv"),
        ("get", "/v1/chunkcache/documents/{document_id}/chunks"),
        ("get", "/v1/chunkcache/warm_up"),
        ("post", "/v1/chunkcache/warm_up"),
        ("get", "/v1/chunkcache/status"),
        ("get", "/v1/chunkcache/quota"),
        ("put", "/v1/chunkcache/quota"),
        ("delete", "/v1/chunkcache/quota"),
        ("post", "/v1/chunkcache/cache/terms"),
        ("get", "/v1/chunkcache/cache/objects"),
        ("post", "/v1/chunkcache/cache/clear"),
        ("post", "/v1/chunkcache/cache/prefetches"),
        ("get", "/documents/{document_id}"),
        ("get", "/health"),
        ("get", "/ready"),
        ("get", "/version"),
        ("get", "/metrics"),
    }


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return here.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def test_the_description_is_closed_and_true(served: Any) -> None:
    document = served.app.openapi()
    schemas = document["components"]["schemas"]
    assert {r.removeprefix("#/components/schemas/") for r in references(document)} <= set(schemas)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = set(operation["responses"])
            assert answers >= {"200", "400", "403", "500", "default"}, path
            assert ("413" in answers) == ("408" in answers) == ("requestBody" in operation), path
            assert (answers >= {"401", "404", "429", "503"}) == path.startswith("/v1/"), path
            assert ("security" in operation) == path.startswith("/v1/"), path
            assert operation["description"], path
    assert set(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {
        "text/plain"
    }
    upload = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    assert set(upload) == {"multipart/form-data"}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        kinds = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(kinds) == {"application/json", "text/event-stream"}
    assert set(schemas["AnswerReport"]["properties"]) == set(AnswerReport.model_fields)
    content = schemas["ChatMessage"]["properties"]["content"]["anyOf"]
    assert [kind["type"] for kind in content] == ["string", "array", "null"]


def test_the_server_loads_no_tensors() -> None:
    heavy = "torch transformers faiss lmdb chunkcache.service chunkcache.engine chunkcache.store"
    program = (
        "import sys, chunkcache.server.app, chunkcache.server.run\n"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_what_is_made_leads_to_what_can_be_done_with_it(served: Any, http: httpx.Client) -> None:
    """Every route with an id of this server's in it is reached by a link that holds."""
    paths = served.app.openapi()["paths"]
    operations = {op["operationId"]: path for path, ops in paths.items() for op in ops.values()}
    reached = set()
    for ops in paths.values():
        for op in ops.values():
            for link in op["responses"]["200"].get("links", {}).values():
                path = operations[link["operationId"]]
                assert set(re.findall(r"\{(\w+)\}", path)) == set(link["parameters"])
                reached.add(path)
    of_documents = {path for path in paths if "{document_id}" in path}
    assert {path for path in paths if "{" in path} - reached == of_documents
    assert http.get("/v1/models").json()["data"][0]["id"]
    made = http.post("/v1/vector_stores", json={}).json()["id"]
    upload: Any = {"files": {"file": ("a.txt", b"a cat")}, "data": {"purpose": "assistants"}}
    file_id = http.post("/v1/files", **upload).json()["id"]
    attached = http.post(f"/v1/vector_stores/{made}/files", json={"file_id": file_id}).json()["id"]
    batch = http.post(f"/v1/vector_stores/{made}/file_batches", json={"file_ids": [file_id]})
    asked = http.post("/v1/responses", json={"input": "a cat"}).json()["id"]
    for path in (
        f"vector_stores/{made}", f"vector_stores/{made}/files/{attached}", f"responses/{asked}",
        f"vector_stores/{made}/file_batches/{batch.json()['id']}", f"files/{file_id}",
    ):  # fmt: skip
        assert http.get(f"/v1/{path}").status_code == 200, path


def test_the_description_is_built_beside_the_event_loop(
    served: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on, true = threading.Event(), threading.Event(), served.app.openapi

    def held() -> Any:
        entered.set()
        assert go_on.wait(20)
        return true()

    monkeypatch.setattr(served.app, "openapi", held)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.get, f"{served.url}/openapi.json", timeout=30)
        assert entered.wait(20)
        try:
            assert http.get("/health", timeout=10).status_code == 200
        finally:
            go_on.set()
        assert asked.result().json()["openapi"].startswith("3.")
