"""The routes, one module per resource."""

from __future__ import annotations

from chunkcache.server.routes import chat, embeddings, files, models, operations, vector_stores

ROUTERS = (
    chat.router,
    models.router,
    embeddings.router,
    files.router,
    vector_stores.router,
    operations.router,
)
