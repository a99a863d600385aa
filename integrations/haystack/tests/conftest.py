"""A running server, named by CHUNKCACHE_URL, and vector stores of the tests' own in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from chunkcache_client import Client

URL = os.environ.get("CHUNKCACHE_URL", "")


@pytest.fixture(scope="session")
def url() -> str:
    if not URL:
        pytest.skip("CHUNKCACHE_URL names no server")
    return URL


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


@pytest.fixture
def store_id(client: Client) -> Iterator[str]:
    """An empty vector store."""
    made = client.create_vector_store("tests")
    yield made
    client.delete_vector_store(made)
