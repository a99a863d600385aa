"""The manners of calling, side by side: the same calls, the same results, the same methods."""

from __future__ import annotations

import inspect
import itertools
import json
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import httpx
import pytest

import chunkcache
import chunkcache.config
import chunkcache.sdk
from chunkcache.errors import ChunkCacheError, InvalidRequest
from chunkcache.protocol import ChunkCacheOptions
from chunkcache.sdk import Answer, AsyncClient, Client
from chunkcache.sdk.wishes import Wishes
from chunkcache.server.links import LinkSigner

if TYPE_CHECKING:
    from collections.abc import Callable

MANNERS = ("sync over a socket", "async over a socket", "async into the app")


def transcript(caller: Any) -> list[Any]:
    """What a fixed list of calls results in, ids and times left out."""
    calls: list[tuple[Any, ...]] = [
        ("ingest", [("a.txt", b"the cat sat"), ("b.txt", b"the dog"), ("c", b"\xff")]),
        ("ingest", [("a.txt", b"the cat sat"), ("b.txt", b"a dog")]),
        ("documents",),
        ("search", "the cat"),
        ("ask", "where is the cat"),
        ("embed", ["one", "two"]),
        ("models",),
        ("version",),
        ("health",),
        ("remove", "none"),
        ("ask", ""),
        ("search", ""),
    ]
    results: list[Any] = []
    for name, *args in calls:
        try:
            results.append(caller(name, *args))
        except ChunkCacheError as error:
            results.append((type(error), error.message, error.param, error.code))
    results.append(list(caller.stream("where is the dog")))
    return [plain(result) for result in results]


def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Answer):
        return [plain(getattr(value, name)) for name in Answer.__slots__ if name != "id"]
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude={"added_at"})
    return value


def test_the_same_calls_have_the_same_results_in_every_manner(
    serve_with: Callable[..., Any],
    open_caller: Any,
    address_of: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An upload's document goes by the file's id, which is drawn: here the same for each manner."""
    monkeypatch.setattr(LinkSigner.__init__, "__defaults__", (lambda: 1e9,))  # links expire
    seen = []
    for number, manner in enumerate(MANNERS):
        drawn = itertools.count()
        monkeypatch.setattr(secrets, "token_hex", lambda size, n=drawn: f"{next(n):0{2 * size}x}")
        served = serve_with()
        served.app.state.shelf._root = tmp_path / f"files{number}"
        seen.append(transcript(open_caller(manner, **address_of(manner, served))))
    assert len(seen[0]) == 13
    assert seen[0] == seen[1]
    assert seen[0] == seen[2]


def methods(client: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(function)
        for name, function in vars(client).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    sync, aio = methods(Client), methods(AsyncClient)
    assert set(sync) == set(aio) == {
        "ask", "close", "create_vector_store", "delete_vector_store", "discard_texts", "documents",
        "embed", "health", "ingest", "keep", "models", "prefetch", "put_texts", "quota",
        "read_texts", "remove", "search", "set_quota", "stream", "texts", "version", "warm_up",
    }  # fmt: skip
    for name, signature in sync.items():
        assert signature.parameters == aio[name].parameters, name
        if name != "stream":
            assert signature.return_annotation == aio[name].return_annotation, name
    made, awaited = inspect.signature(Client), inspect.signature(AsyncClient)
    assert list(made.parameters) == list(awaited.parameters)
    for name in set(made.parameters) - {"transport"}:
        assert made.parameters[name] == awaited.parameters[name]


def test_every_option_of_the_protocol_is_a_wish_with_its_own_values() -> None:
    hints = get_type_hints(Wishes, localns={**vars(chunkcache.config), **vars(chunkcache.protocol)})
    for name, field in ChunkCacheOptions.model_fields.items():
        assert name in hints
        if name == "mode":
            assert set(get_args(get_args(hints[name])[0])) == set(get_args(field.annotation))


def test_clients_are_context_managers_and_closing_twice_is_fine(served: Any) -> None:
    with Client(served.url) as client:
        assert client.version() == chunkcache.__version__
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.version()


@pytest.mark.parametrize("url", ["", "localhost:8321", "ftp://x", "/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="base_url"):
        Client(url)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "schlüssel", "a\x00"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidRequest, match="api_key") as caught:
        Client(api_key=key)
    assert not key.strip() or key not in str(caught.value)


def test_a_client_does_not_show_its_key() -> None:
    with Client("http://server.test/v1", api_key="sk-secret") as client:
        assert repr(client) == "Client('http://server.test')"


def test_public_names() -> None:
    assert chunkcache.sdk.__all__ == sorted(chunkcache.sdk.__all__)
    assert all(hasattr(chunkcache.sdk, name) for name in chunkcache.sdk.__all__)
    assert chunkcache.Client is Client and chunkcache.AsyncClient is AsyncClient
    assert {"AsyncClient", "Client"} < set(chunkcache.__all__)


def test_the_client_loads_no_torch() -> None:
    heavy = [
        "torch", "transformers", "faiss", "lmdb", "numpy", "fastapi",
        "chunkcache.service", "chunkcache.engine", "chunkcache.store", "chunkcache.retrieval",
        "chunkcache.server",
    ]  # fmt: skip
    program = (
        "import sys, chunkcache, chunkcache.sdk\n"
        "chunkcache.Client().close(); chunkcache.AsyncClient\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_requests_go_to_paths_below_the_base_address() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, content=json.dumps({"version": "1"}))

    for base in ("http://host/kv", "http://host/kv/", "http://host/kv/v1", "http://host/kv/v1/"):
        with Client(base, transport=httpx.MockTransport(answer)) as client:
            client.version()
    assert set(seen) == {"http://host/kv/version"}
