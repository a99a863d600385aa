"""LlamaIndex over a running server: nodes keep their ids, their KV is computed once.

pip install llama-index-chunkcache (here: client/ and integrations/llamaindex)
python examples/05_llamaindex.py http://127.0.0.1:8321
"""

from __future__ import annotations

import sys

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.llms.chunkcache import ChunkCacheLLM
from llama_index.retrievers.chunkcache import ChunkCacheRetriever

from chunkcache_client import Client

NODES = [
    TextNode(id_="clock", text="The tower clock was built in 1788 and is wound on Saturdays."),
    TextNode(id_="archive", text="The archive keeps maps and letters of the harbour from 1612 on."),
    TextNode(id_="tours", text="Guided tours of the lighthouse begin at ten and at three."),
]
QUESTION = "On which day is the tower clock wound?"


def main() -> None:
    url = sys.argv[1]
    with Client(url) as client:
        plain = next(one.id for one in client.models() if one.kind == "chat" and not one.retrieves)
        store_id = client.create_vector_store("example")
        retriever = ChunkCacheRetriever(store_id, base_url=url, similarity_top_k=2)
        retriever.add_nodes(NODES)
        found = retriever.retrieve(QUESTION)
        print("found:", [one.node_id for one in found])

        # Nodes as documents of the request: cited by their ids, whoever retrieved them.
        llm = ChunkCacheLLM(base_url=url, max_tokens=24)
        question = [ChatMessage(role=MessageRole.USER, content=QUESTION)]
        for _ in range(2):  # the second time their KV is there
            raw = llm.chat(question, nodes=found).raw
        print("cited:", [cited["document_id"] for cited in raw["citations"]])
        print("rung:", raw["chunkcache"]["rung"], "reused:", raw["chunkcache"]["reused_tokens"])

        # Or a query engine, which writes the passages into its own prompt.
        reader = ChunkCacheLLM(base_url=url, model=plain, max_tokens=24)
        print(RetrieverQueryEngine.from_args(retriever, llm=reader).query(QUESTION))
        client.delete_vector_store(store_id)


if __name__ == "__main__":
    main()
