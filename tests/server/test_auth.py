"""API keys and the tenants they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from chunkcache.errors import ConfigError, Unauthorized
from chunkcache.server.auth import ApiKeys

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = "# who may\n\nsk-one acme\nsk-two   acme\n  sk-three globex  \n"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(KEYS)
    path.chmod(0o600)
    return path


@pytest.fixture
def keyed(serve_with: Callable[..., Any], key_file: Path) -> Any:
    return serve_with(api_keys_file=key_file)


def ask(served: Any, key: str, question: str = "hello") -> Any:
    return served.client(key).chat.completions.create(
        model="tiny-chat", messages=[{"role": "user", "content": question}]
    )


def test_without_a_key_file_everybody_is_the_public_tenant(served: Any) -> None:
    ask(served, "whatever")
    assert [r.tenant for r in served.service.requests] == ["public"]


def test_keys_decide_the_tenant(keyed: Any) -> None:
    for key in ("sk-one", "sk-two", "sk-three"):
        ask(keyed, key)
    assert [r.tenant for r in keyed.service.requests] == ["acme", "acme", "globex"]


@pytest.mark.parametrize(
    "header",
    [None, "", "sk-one", "Bearer", "Basic sk-one", "Bearer acme", "Bearer sk-one sk-two",
     "Bearer SK-ONE", "Bearer sk-on", "Bearer \xff"],
)  # fmt: skip
def test_no_or_a_wrong_key_is_401_before_the_body_is_looked_at(
    keyed: Any, header: str | None
) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    response = httpx.post(f"{keyed.url}/v1/chat/completions", content=b"{", headers=headers)
    error = response.json()["error"]
    assert response.status_code == 401
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "sk-" not in response.text and keyed.service.requests == []


def test_the_openai_client_sees_its_own_error(keyed: Any) -> None:
    with pytest.raises(openai.AuthenticationError):
        keyed.client("sk-none").models.list()


def test_every_v1_route_asks_for_a_key_and_no_other_does(keyed: Any) -> None:
    for path, operations in keyed.app.openapi()["paths"].items():
        for method in operations:
            status = httpx.request(method, keyed.url + path.replace("{", "").replace("}", ""))
            assert (status.status_code == 401) == path.startswith("/v1/"), (method, path)
    for path in ("/v1", "/v1/", "/v1/nothing", "/health", "/version", "/metrics", "/openapi.json"):
        status = httpx.get(keyed.url + path)
        assert (status.status_code == 401) == path.startswith("/v1"), path


def test_tenants_do_not_see_each_other(keyed: Any) -> None:
    acme, globex = keyed.client("sk-one"), keyed.client("sk-three")
    file = acme.files.create(file=("a.txt", b"the cat"), purpose="assistants")
    store = acme.vector_stores.create(name="cats", file_ids=[file.id])
    assert list(globex.files.list()) == []
    assert [s.id for s in globex.vector_stores.list()] == ["default"]
    for forbidden in (
        lambda: globex.files.retrieve(file.id),
        lambda: globex.files.delete(file.id),
        lambda: globex.vector_stores.retrieve(store.id),
        lambda: globex.vector_stores.delete(store.id),
        lambda: globex.vector_stores.files.list(store.id),
        lambda: globex.vector_stores.search(store.id, query="cat"),
        lambda: globex.vector_stores.files.create("default", file_id=file.id),
        lambda: globex.vector_stores.create(file_ids=[file.id]),
    ):
        with pytest.raises(openai.NotFoundError):
            forbidden()
    assert [s.id for s in globex.vector_stores.list()] == ["default"]
    # and the two keys of one tenant do
    other_key = keyed.client("sk-two")
    assert [hit.file_id for hit in other_key.vector_stores.search(store.id, query="cat")] == [
        file.id
    ]


@pytest.mark.parametrize("field", ["tenant", "salt", "cache_salt", "collection"])
def test_nothing_in_a_request_chooses_the_tenant(keyed: Any, field: str) -> None:
    for body in ({field: "acme"}, {"chunkcache": {field: "acme"}}):
        response = httpx.post(
            f"{keyed.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}], **body},
            headers={"authorization": "Bearer sk-three"},
        )
        assert response.status_code == 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key"),
        ("# nothing\n", "has no key"),
        ("sk-one\n", "line 1"),
        ("\nsk-one acme extra\n", "line 2"),
        ("sk-one acme\nsk-one globex\n", "line 2: a repeated key"),
        ("schlüssel acme\n", "line 1: a key not in ASCII"),
    ],
)
def test_an_unusable_key_file_is_a_config_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        ApiKeys.load(path)
    assert "sk-one" not in str(caught.value)


def test_a_key_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        ApiKeys.load(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        ApiKeys.load(tmp_path / "binary")


def test_a_key_file_that_others_can_read_is_warned_about(key_file: Path, logged: list[Any]) -> None:
    ApiKeys.load(key_file)
    assert logged == []
    key_file.chmod(0o644)
    ApiKeys.load(key_file)
    assert [entry["event"] for entry in logged] == ["api_keys_file_world_readable"]


def test_tenant_of_is_strict_about_the_scheme(key_file: Path) -> None:
    keys = ApiKeys.load(key_file)
    assert keys.tenant_of("bearer sk-one ") == "acme"
    with pytest.raises(Unauthorized):
        keys.tenant_of("Token sk-one")
