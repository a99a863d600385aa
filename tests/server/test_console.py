"""`/v1/chunkcache/...`: bounded, paged, and each tenant's own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest


def ask(http: httpx.Client, question: str, **headers: str) -> None:
    body = {"messages": [{"role": "user", "content": question}]}
    response = http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text


def requests_of(http: httpx.Client, count: int, **headers: str) -> list[Any]:
    """The journal once it has so many: a request is noted just after its last byte."""
    deadline = time.monotonic() + 10
    while True:
        found = http.get("/v1/chunkcache/requests", headers=headers).json()["data"]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def put(served: Any, name: str, text: str, tenant: str = "public") -> Any:
    return served.service.ingest_bytes(name, text.encode(), tenant=tenant, collection="default")


def test_requests_are_listed_newest_first_with_the_reason_of_a_miss(
    served: Any, http: httpx.Client
) -> None:
    put(served, "a.txt", "absent friends")
    ask(http, "friends")
    ask(http, "absent friends")
    newest, older = requests_of(http, 2)
    assert (newest["question"], older["question"]) == ("absent friends", "friends")
    assert newest["report"]["spans"][0]["miss"] == "absent"
    assert older["report"]["spans"][0]["miss"] is None
    assert older["outcome"] == "ok" and older["completion_tokens"] > 0


def test_requests_come_in_pages(served: Any, http: httpx.Client) -> None:
    for number in range(5):
        ask(http, f"question {number}")
    requests_of(http, 5)
    first = http.get("/v1/chunkcache/requests", params={"limit": 2}).json()
    assert [r["question"] for r in first["data"]] == ["question 4", "question 3"]
    assert first["has_more"] is True
    params = {"limit": 3, "after": first["last_id"]}
    rest = http.get("/v1/chunkcache/requests", params=params).json()
    assert [r["question"] for r in rest["data"]] == ["question 2", "question 1", "question 0"]
    assert rest["has_more"] is False
    assert http.get("/v1/chunkcache/requests", params={"limit": 101}).status_code == 400


def test_one_whose_client_left_is_listed_as_cancelled(served: Any, http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hold on"}], "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    (record,) = requests_of(http, 1)
    assert (record["outcome"], record["report"]) == ("cancelled", None)


def test_figures_over_time_are_bounded_and_say_what_the_counters_stood_at(
    served: Any, http: httpx.Client
) -> None:
    served.service.metrics.chunk_hits.labels("host").inc(3)
    figures = http.get("/v1/chunkcache/figures").json()
    assert (figures["span"], figures["interval_s"]) == ("hour", 5)
    assert figures["samples"][-1]["hits"] == {"host": 3}
    assert figures["capacity_bytes"]["disk"] == 8 * 2**30
    assert figures["sizing"] is None
    days = http.get("/v1/chunkcache/figures", params={"span": "days"}).json()
    assert days["interval_s"] == 300
    assert http.get("/v1/chunkcache/figures", params={"span": "year"}).status_code == 400


def test_the_sizing_curve_is_there_once_the_tool_left_one(served: Any, http: httpx.Client) -> None:
    points = [{"capacity_bytes": n, "hit_rate": n / 10} for n in (1, 9)]
    curve = {"made_at": 1.0, "trace": "a week", "points": points}
    path = Path(served.service.settings.home) / "sizing.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(curve))
    assert http.get("/v1/chunkcache/figures").json()["sizing"] == curve


def test_the_chunks_of_a_document_and_where_their_kv_is(served: Any, http: httpx.Client) -> None:
    info = put(served, "warm.txt", "some text")
    found = http.get(f"/v1/chunkcache/documents/{info.document_id}/chunks").json()
    (chunk,) = found["data"]
    assert (chunk["text"], chunk["tier"], chunk["ordinal"]) == ("some text", "host", 0)
    assert found["document"]["document_id"] == info.document_id
    assert found["has_more"] is False
    past = http.get(
        f"/v1/chunkcache/documents/{info.document_id}/chunks", params={"offset": 1}
    ).json()
    assert (past["data"], past["has_more"]) == ([], False)
    for bad in ({"limit": 51}, {"limit": 0}, {"offset": -1}, {"offset": 2**31}, {"page": 1}):
        response = http.get(f"/v1/chunkcache/documents/{info.document_id}/chunks", params=bad)
        assert response.status_code == 400, bad
    assert http.get("/v1/chunkcache/documents/none/chunks").status_code == 404


def test_documents_are_summed_up_by_tier(served: Any, http: httpx.Client) -> None:
    warm, cold = put(served, "a.txt", "text"), put(served, "b.txt", "cold text")
    params = {"document_id": [warm.document_id, cold.document_id]}
    data = http.get("/v1/chunkcache/kv", params=params).json()["data"]
    assert [state["tiers"] for state in data] == [{"host": 1}, {}]
    assert http.get("/v1/chunkcache/kv").status_code == 400
    too_many = {"document_id": ["x"] * 101}
    assert http.get("/v1/chunkcache/kv", params=too_many).status_code == 400
    unknown = {"document_id": [warm.document_id, "none"]}
    assert http.get("/v1/chunkcache/kv", params=unknown).status_code == 404


def wait_for(http: httpx.Client, **fields: object) -> Any:
    deadline = time.monotonic() + 10
    while True:
        state = http.get("/v1/chunkcache/warm_up").json()
        if all(state[name] == value for name, value in fields.items()):
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.01)


def test_a_warm_up_from_beginning_to_end(served: Any, http: httpx.Client) -> None:
    def tell(action: str, **fields: str) -> httpx.Response:
        return http.post("/v1/chunkcache/warm_up", json={"action": action, **fields})

    steps = served.service.warm_steps
    assert http.get("/v1/chunkcache/warm_up").json()["state"] == "idle"
    assert tell("pause").status_code == 400
    assert tell("start", vector_store_id="vs_none").status_code == 404
    assert tell("begin").status_code == 400
    assert tell("start").json()["state"] == "running"
    assert tell("start").status_code == 400
    steps.release()
    state = wait_for(http, done=1)
    assert state["total"] == 4 and state["eta_s"] > 0
    assert tell("pause").json()["state"] == "paused"
    steps.release()
    assert tell("resume").json()["state"] == "running"
    steps.release(2)
    assert wait_for(http, state="done")["done"] == 4


def test_no_tenant_sees_or_touches_anothers(serve_with: Callable[..., Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-one one\nkey-two two\n")
    keys.chmod(0o600)
    served = serve_with(api_keys_file=keys)
    one = {"authorization": "Bearer key-one"}
    two = {"authorization": "Bearer key-two"}
    info = put(served, "secret.txt", "a secret", tenant="one")
    with httpx.Client(base_url=served.url, timeout=20) as http:
        for path in ("requests", "figures", "kv?document_id=x", "warm_up", "documents/x/chunks"):
            assert http.get(f"/v1/chunkcache/{path}").status_code == 401, path
        ask(http, "a secret", **one)
        assert len(requests_of(http, 1, **one)) == 1
        assert http.get("/v1/chunkcache/requests", headers=two).json()["data"] == []
        chunks = f"/v1/chunkcache/documents/{info.document_id}/chunks"
        assert http.get(chunks, headers=one).status_code == 200
        assert http.get(chunks, headers=two).status_code == 404
        params = {"document_id": info.document_id}
        assert http.get("/v1/chunkcache/kv", params=params, headers=two).status_code == 404
        wish = {"action": "start"}
        assert http.post("/v1/chunkcache/warm_up", json=wish, headers=one).status_code == 200
        assert http.get("/v1/chunkcache/warm_up", headers=two).json()["state"] == "idle"
        stop = http.post("/v1/chunkcache/warm_up", json={"action": "stop"}, headers=two)
        assert stop.status_code == 400


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_the_page_itself_asks_for_no_key_and_tells_nothing(
    serve_with: Callable[..., Any], tmp_path: Path, path: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-one one\n")
    served = serve_with(api_keys_file=keys)
    put(served, "secret.txt", "a secret", tenant="one")
    response = httpx.get(served.url + path)
    assert response.status_code == 200
    assert "secret.txt" not in response.text
