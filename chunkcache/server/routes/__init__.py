"""The routes, one module per resource."""

from __future__ import annotations

from chunkcache.server.routes import (
    cache,
    chat,
    console,
    documents,
    embeddings,
    files,
    models,
    operations,
    page,
    responses,
    vector_store_files,
    vector_stores,
)

ROUTERS = (
    chat.router,
    responses.router,
    models.router,
    embeddings.router,
    files.router,
    vector_stores.router,
    vector_store_files.router,
    documents.router,
    operations.router,
    console.router,
    cache.router,
    page.router,
)
