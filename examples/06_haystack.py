"""Haystack over a running server: a pipeline of document store, retriever and generator.

pip install chunkcache-haystack (here: client/ and integrations/haystack)
python examples/06_haystack.py http://127.0.0.1:8321
"""

from __future__ import annotations

import sys

from haystack import Document, Pipeline
from haystack_integrations.components.generators.chunkcache import ChunkCacheChatGenerator
from haystack_integrations.components.retrievers.chunkcache import ChunkCacheRetriever
from haystack_integrations.document_stores.chunkcache import ChunkCacheDocumentStore

from chunkcache_client import Client

DOCUMENTS = [
    Document(id="clock", content="The tower clock of 1788 is wound on Saturdays.",
             meta={"year": 1788}),
    Document(id="archive", content="The archive keeps maps of the harbour.", meta={"year": 1612}),
    Document(id="tours", content="Tours of the lighthouse begin at ten and at three."),
]  # fmt: skip
QUESTION = "On which day is the tower clock wound?"


def main() -> None:
    url = sys.argv[1]
    with Client(url) as client:
        store_id = client.create_vector_store("example")
        store = ChunkCacheDocumentStore(store_id, api_base_url=url)
        store.write_documents(DOCUMENTS)
        since = {"field": "meta.year", "operator": ">=", "value": 1700}
        print("since 1700:", [one.id for one in store.filter_documents(since)])

        pipeline = Pipeline()
        pipeline.add_component("retriever", ChunkCacheRetriever(store, top_k=2))
        generator = ChunkCacheChatGenerator(
            api_base_url=url, generation_kwargs={"max_tokens": 24, "budget": 0.15}
        )
        pipeline.add_component("generator", generator)
        pipeline.connect("retriever.documents", "generator.documents")
        for _ in range(2):  # the second time the documents' KV is there
            done = pipeline.run(
                {"retriever": {"query": QUESTION}, "generator": {"messages": QUESTION}}
            )
        (reply,) = done["generator"]["replies"]
        print(reply.text, [cited["document_id"] for cited in reply.meta["citations"]])
        report = reply.meta["chunkcache"]
        print("rung:", report["rung"], "reused:", report["reused_tokens"])
        client.delete_vector_store(store_id)


if __name__ == "__main__":
    main()
