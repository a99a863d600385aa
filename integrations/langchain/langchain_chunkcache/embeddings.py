"""The server's embedder."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from langchain_chunkcache.connection import Connection


class ChunkCacheEmbeddings(Connection, Embeddings):
    """Unit vectors by the server's embedder, which needs no name: a server has one.

    OpenAI's endpoint does not say what a text is for, so queries and passages are embedded alike;
    the retriever and the vector store let the server search and have its prompts for queries.
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        return self.client.embed(texts)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a text."""
        return self.client.embed([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        async with self.async_client() as client:
            return await client.embed(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """The vector of a text."""
        return (await self.aembed_documents([text]))[0]
