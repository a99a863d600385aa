"""Models and embeddings through the OpenAI client."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import openai
import pytest


def test_the_decoder_is_listed_first_then_the_embedder(served: Any) -> None:
    models = list(served.client().models.list())
    assert [(m.id, m.chunkcache["kind"]) for m in models] == [
        ("tiny-chat", "chat"), ("tiny-embed", "embedding"),
    ]  # fmt: skip
    assert {(m.object, m.created, m.owned_by) for m in models} == {
        ("model", 1_700_000_000, "chunkcache")
    }


def test_one_model_is_found_by_id_slashes_or_not(served: Any) -> None:
    client = served.client()
    assert client.models.retrieve("tiny-embed").id == "tiny-embed"
    served.service.model_id = "org/tiny"
    assert client.models.retrieve("org/tiny").id == "org/tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("tiny-chat")
    assert caught.value.code == "model_not_found" and "org/tiny" in caught.value.message


def test_floats_and_base64_are_the_same_vectors(served: Any) -> None:
    client = served.client()
    texts = ["one", "two words", "drei Wörter ☃"]
    plain = client.embeddings.create(model="tiny-embed", input=texts, encoding_format="float")
    assert [item.index for item in plain.data] == [0, 1, 2]
    wanted = served.service.embed(texts)[0]
    assert [item.embedding for item in plain.data] == wanted
    packed = client.embeddings.create(model="tiny-embed", input=texts)  # asks for base64 itself
    for item, vector in zip(packed.data, wanted, strict=True):
        assert item.embedding == pytest.approx(vector, rel=1e-6)
    assert plain.usage == packed.usage
    assert (plain.usage.prompt_tokens, plain.usage.total_tokens) == (6, 6)


def test_base64_is_little_endian_float32(served: Any, http: httpx.Client) -> None:
    body = {"input": "one", "encoding_format": "base64"}
    done = http.post("/v1/embeddings", json=body).json()
    packed = base64.b64decode(done["data"][0]["embedding"])
    assert struct.unpack("<4f", packed) == pytest.approx(served.service.embed(["one"])[0][0])
    assert done["model"] == "tiny-embed"


def test_one_text_is_a_list_of_one(served: Any) -> None:
    done = served.client().embeddings.create(model="tiny-embed", input="one")
    assert len(done.data) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "a", "dimensions": 4}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({}, "input"),
    ],
)
def test_wrong_inputs_are_refused_by_name(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/embeddings", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


def test_the_largest_batch_is_taken(http: httpx.Client) -> None:
    assert len(http.post("/v1/embeddings", json={"input": ["x"] * 2048}).json()["data"]) == 2048


def test_the_decoder_embeds_nothing(served: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny-embed"):
        served.client().embeddings.create(model="tiny-chat", input="a")
