"""LangChain over a running server: its own retrieval, and a chain that brings the passages.

pip install langchain-chunkcache (here: client/ and integrations/langchain)
python examples/04_langchain.py http://127.0.0.1:8321
"""

from __future__ import annotations

import sys

from langchain_chunkcache import ChatChunkCache, ChunkCacheVectorStore
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from chunkcache_client import Client

TEXTS = [
    "The tower clock was built in 1788 and is wound by hand every eighth day, on Saturdays. It has "
    "two bells: the larger one strikes the hours, the smaller one, cast in 1790, the quarters.",
    "The archive keeps maps, letters and account books of the harbour from 1612 on.",
    "Guided tours of the lighthouse begin at ten and at three, except in November.",
]
QUESTION = "On which day is the tower clock wound?"


def main() -> None:
    url = sys.argv[1]
    with Client(url) as client:
        plain = next(one.id for one in client.models() if one.kind == "chat" and not one.retrieves)
        store_id = client.create_vector_store("example")
        store = ChunkCacheVectorStore.from_texts(
            TEXTS, ids=["clock", "archive", "lighthouse"],
            metadatas=[{"title": "The tower clock", "year": 1788},
                       {"title": "The archive", "year": 1612}, {"title": "The lighthouse"}],
            vector_store_id=store_id, base_url=url,
        )  # fmt: skip
        since = store.as_retriever(search_kwargs={"k": 1, "filter": {"year": {"$gte": 1700}}})
        print("found:", [found.id for found in since.invoke(QUESTION)])

        model = ChatChunkCache(base_url=url, vector_store_id=store_id, top_k=2, max_tokens=24)
        answer = model.invoke(QUESTION)
        about = answer.response_metadata
        print(answer.text, [cited["title"] for cited in about["citations"]])
        print("rung:", about["chunkcache"]["rung"])

        # The chain writes the passage into the prompt; the server recognises it.
        prompt = ChatPromptTemplate.from_template("Answer from this:\n\n{context}\n\n{question}")
        reader = ChatChunkCache(base_url=url, model=plain, max_tokens=24)
        passage = since | (lambda found: "\n\n".join(one.page_content for one in found))
        chain = {"context": passage, "question": RunnablePassthrough()} | prompt | reader
        report = chain.invoke(QUESTION).response_metadata["chunkcache"]
        print("reused in the chain:", report["reused_tokens"], "of", report["prompt_tokens"])
        client.delete_vector_store(store_id)


if __name__ == "__main__":
    main()
