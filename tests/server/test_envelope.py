"""Request ids, the request log, and what browsers of strangers may not do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from chunkcache.server.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable


def test_every_response_has_an_id_of_its_own(http: httpx.Client) -> None:
    paths = ["/health", "/nothing", "/v1/models", "/v1/files/none"]
    ids = {http.get(path).headers["x-request-id"] for path in paths}
    assert len(ids) == len(paths)


def test_a_sane_request_id_is_kept(http: httpx.Client) -> None:
    assert (
        http.get("/health", headers={"x-request-id": "a.B-1_"}).headers["x-request-id"] == "a.B-1_"
    )


@pytest.mark.parametrize("asked", ["", "a b", "x" * 65, "é", "a\x7f"])
def test_any_other_request_id_is_replaced(http: httpx.Client, asked: str) -> None:
    given = http.get("/health", headers={"x-request-id": asked.encode()}).headers["x-request-id"]
    assert given.startswith("req_")


def test_one_log_line_per_request_without_its_query(
    served: Any, logged: list[Any], http: httpx.Client
) -> None:
    http.get("/v1/files", params={"after": "secret"})
    http.get("/health")  # by its end, the first request has been logged
    (line,) = [entry for entry in logged if entry.get("path") == "/v1/files"]
    assert line["event"] == "request"
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/files", 400)
    assert "secret" not in repr(line)


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
def test_writes_from_other_sites_are_refused(served: Any, http: httpx.Client, method: str) -> None:
    response = http.request(
        method, "/v1/files", headers={"sec-fetch-site": "cross-site"},
        files={"file": ("a.txt", b"planted")}, data={"purpose": "assistants"},
    )  # fmt: skip
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert http.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
def test_writes_from_the_same_site_are_taken(http: httpx.Client, site: str) -> None:
    response = http.post(
        "/v1/files", headers={"sec-fetch-site": site},
        files={"file": ("a.txt", b"own")}, data={"purpose": "assistants"},
    )  # fmt: skip
    assert response.status_code == 200


def test_a_link_from_another_site_may_be_followed(http: httpx.Client) -> None:
    assert http.get("/health", headers={"sec-fetch-site": "cross-site"}).status_code == 200


STRANGERS = [
    "evil.example",
    "evil.example:8321",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "a.b:x",
]
OWN = [
    "localhost", "LOCALHOST:8321", "127.0.0.1:1", "[::1]:8321", "192.168.1.7", "chunkcache:8321",
    "host.docker.internal:8321", "printer.local", "chat.localhost", "",
]  # fmt: skip


@pytest.mark.parametrize("host", STRANGERS)
def test_a_name_in_public_dns_does_not_reach_an_open_local_server(
    http: httpx.Client, host: str
) -> None:
    response = http.get("/v1/models", headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert "server.public_url" in response.json()["error"]["message"]


@pytest.mark.parametrize("host", OWN)
def test_local_names_and_addresses_do(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": "*"},
        {"allowed_hosts": "other.example, Evil.example"},
        {"public_url": "https://Evil.example/base"},
    ],
    ids=["any", "allowed", "public-url"],
)
def test_a_server_meant_to_be_reached_by_name_is(
    serve_with: Callable[..., Any], settings: dict[str, str]
) -> None:
    served = serve_with(**settings)
    response = httpx.get(f"{served.url}/v1/models", headers={"host": "evil.example"})
    assert response.status_code == 200


@pytest.mark.parametrize("bound_to", ["0.0.0.0", "::", "192.168.1.7", "srv.example"])
def test_which_address_is_bound_does_not_matter(served: Any, bound_to: str) -> None:
    app = create_app(served.service, bound_to)

    async def status(host: str) -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return (await client.get("/health")).status_code

    assert asyncio.run(status("evil.example")) == 403
    assert asyncio.run(status("192.168.1.7")) == 200
    assert asyncio.run(status("srv.example")) == (200 if bound_to == "srv.example" else 403)


def upload(http: httpx.Client, headers: dict[str, str]) -> int:
    return http.post(
        "/v1/files", headers=headers, files={"file": ("a.txt", b"planted")},
        data={"purpose": "assistants"},
    ).status_code  # fmt: skip


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "https://localhost.evil.example:8321", "http://8.8.8.8",
        "http://[2600::1]", "null", "http://a.b:x", "http://127.0.0.1.nip.io",
    ],
)  # fmt: skip
def test_a_browser_that_sends_no_more_than_an_origin_is_judged_by_it(
    http: httpx.Client, origin: str
) -> None:
    assert upload(http, {"origin": origin}) == 403
    assert upload(http, {"origin": origin, "host": "192.168.1.7:8321"}) == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000", "http://127.0.0.1", "http://[::1]:1", "https://chat.lan",
        "http://192.168.1.9:3000", "chrome-extension://abc", "app://obsidian.md",
    ],
)  # fmt: skip
def test_pages_and_applications_of_this_network_may_write(http: httpx.Client, origin: str) -> None:
    assert upload(http, {"origin": origin}) == 200


def test_no_page_elsewhere_may_read_an_answer(http: httpx.Client) -> None:
    """Browsers ask before they send JSON, and are not told yes."""
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    responses = [
        http.options("/v1/chat/completions", headers=asked),
        http.get("/v1/models", headers={"origin": "http://evil.example"}),
    ]
    for response in responses:
        assert not [name for name in response.headers if name.startswith("access-control")]
