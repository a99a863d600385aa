"""Models and embeddings through the OpenAI client."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from chunkcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

USER = [{"role": "user", "content": "where is the cat"}]


def kinds(served: Any) -> list[tuple[str, Any]]:
    return [(m.id, m.chunkcache) for m in served.client().models.list()]


def test_the_decoder_is_listed_first_then_the_embedder(served: Any) -> None:
    assert kinds(served) == [
        ("tiny-chat", {"kind": "chat", "retrieves": True}),
        ("tiny-chat:plain", {"kind": "chat", "retrieves": False}),
        ("tiny-embed", {"kind": "embedding"}),
    ]
    assert {(m.object, m.created, m.owned_by) for m in served.client().models.list()} == {
        ("model", 1_700_000_000, "chunkcache")
    }


def test_one_model_is_found_by_id_slashes_or_not(served: Any) -> None:
    client = served.client()
    assert client.models.retrieve("tiny-embed").id == "tiny-embed"
    served.service.model_id = "org/tiny"
    assert client.models.retrieve("org/tiny").id == "org/tiny"
    assert client.models.retrieve("org/tiny:plain").chunkcache["retrieves"] is False
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("tiny-chat")
    assert caught.value.code == "model_not_found" and "'org/tiny:plain'" in caught.value.message


def test_a_decoder_has_as_many_ids_as_it_is_given(serve_with: Callable[..., Any]) -> None:
    served = serve_with(model={"alias": ["gpt-4o-mini", "/models/tiny folder"]})
    ids = ["gpt-4o-mini", "/models/tiny folder"]
    listed = [*ids, *(f"{name}:plain" for name in ids), "tiny-embed"]
    assert [name for name, _ in kinds(served)] == listed
    for name in listed[:-1]:
        done = served.client().chat.completions.create(model=name, messages=USER)
        assert done.model == name
    assert [request.top_k for request in served.service.requests] == [None, None, 0, 0]


def test_what_the_settings_call_a_model_is_taken_and_not_shown(
    serve_with: Callable[..., Any],
) -> None:
    served = serve_with(model={"name": "/models/tiny", "alias": "tiny-chat"})
    client = served.client()
    for name in ("/models/tiny", "/models/tiny:plain"):
        assert client.chat.completions.create(model=name, messages=USER).model == name
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tiny", messages=USER)
    assert "/models" not in caught.value.message
    assert "/models/tiny" not in dict(kinds(served))


def test_one_id_cannot_stand_for_two_models(serve_with: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="'tiny-embed' is the id of the embedder"):
        serve_with(model={"alias": "tiny-embed"})


def test_the_plain_id_never_retrieves(served: Any) -> None:
    served.service.ingest_bytes("a.txt", b"where is it", tenant="public", collection="default")
    client = served.client()
    found = client.chat.completions.create(model="tiny-chat", messages=USER)
    plain = client.chat.completions.create(model="tiny-chat:plain", messages=USER)
    assert len(found.choices[0].message.annotations) == 1
    assert plain.choices[0].message.annotations == []
    assert [(r.top_k, r.layout) for r in served.service.requests] == [(None, "chat"), (0, "plain")]
    for options in ({"top_k": 2}, {"vector_store_id": "default"}):
        with pytest.raises(openai.BadRequestError, match="'tiny-chat' retrieves") as caught:
            client.chat.completions.create(
                model="tiny-chat:plain", messages=USER, extra_body={"chunkcache": options}
            )
        assert caught.value.param == f"chunkcache.{next(iter(options))}"
    given = {"documents": [{"text": "the cat is in"}], "chunkcache": {"budget": 0.5}}
    done = client.chat.completions.create(model="tiny-chat:plain", messages=USER, extra_body=given)
    assert len(done.choices[0].message.annotations) == 1


def test_the_embedder_chosen_for_a_chat_says_so(served: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        served.client().chat.completions.create(model="tiny-embed", messages=USER)
    said = (
        "The model 'tiny-embed' embeds text and does not chat; 'tiny-chat', 'tiny-chat:plain' do."
    )
    assert caught.value.body["message"] == said
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


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
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
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


def test_the_embedder_s_own_number_of_dimensions_may_be_named(served: Any) -> None:
    done = served.client().embeddings.create(model="tiny-embed", input="a", dimensions=4)
    assert len(done.data[0].embedding) == 4


@pytest.mark.parametrize("ids", [[15339, 1917], [[15339, 1917]], [[15339], [1917]], ["a", 3]])
def test_token_ids_are_refused_with_what_to_set_instead(served: Any, ids: Any) -> None:
    """LangChain sends those of cl100k by default: no tokenizer of ours can read them."""
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
        served.client().embeddings.create(model="tiny-embed", input=ids)
    assert (caught.value.param, caught.value.code) == ("input", "unsupported_parameter")
