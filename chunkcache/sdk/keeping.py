"""What is warm, on what terms it is kept, and how much a tenant may hold. See `flows`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .calls import Call
from .results import reading
from .wishes import document_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..keep import Keep
    from ..protocol import Json
    from .flows import Flow
    from .wishes import Documents


@dataclass(frozen=True, slots=True)
class Kept:
    """How many chunks were meant, and how many of them are kept on these terms now."""

    chunks: int
    stored: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may hold in each tier (None: no limit), and what it holds on disk."""

    tenant: str
    limit_bytes: int | None
    disk_bytes: int


def prefetch(
    texts: Documents | None,
    document_ids: Sequence[str] | None,
    keep: Keep | None,
    vector_store_id: str,
) -> Flow[Json]:
    """Begin to warm them; the state of the warm-up."""
    body = _chunks_body(texts, document_ids, keep, vector_store_id)
    # asked twice, the second is refused while the first one runs
    return (yield Call("POST", "/v1/chunkcache/cache/prefetches", body, repeatable=False))


def warm_up() -> Flow[Json]:
    """How far the tenant's warm-up is."""
    return (yield Call("GET", "/v1/chunkcache/warm_up"))


def keep_on(
    keep: Keep,
    texts: Documents | None,
    document_ids: Sequence[str] | None,
    vector_store_id: str,
) -> Flow[Kept]:
    """Put what is stored on other terms."""
    body = _chunks_body(texts, document_ids, keep, vector_store_id)
    reply = yield Call("POST", "/v1/chunkcache/cache/terms", body)
    with reading("how many chunks are kept"):
        return Kept(int(reply["chunks"]), int(reply["stored"]))


def quota() -> Flow[Quota]:
    """The caller's own."""
    reply = yield Call("GET", "/v1/chunkcache/quota")
    return _quota_of(reply)


def set_quota(limit_bytes: int | None, tenant: str | None) -> Flow[Quota]:
    """Limit a tenant; None: the caller's."""
    body: Json = {"limit_bytes": limit_bytes}
    if tenant is not None:
        body["tenant"] = tenant
    reply = yield Call("PUT", "/v1/chunkcache/quota", body)
    return _quota_of(reply)


def _quota_of(reply: Json) -> Quota:
    with reading("the quota"):
        limit: Any = reply["limit_bytes"]
        held = int(reply["disk_bytes"])
        return Quota(str(reply["tenant"]), None if limit is None else int(limit), held)


def _chunks_body(
    texts: Documents | None,
    document_ids: Sequence[str] | None,
    keep: Keep | None,
    vector_store_id: str,
) -> Json:
    body: Json = {} if keep is None else keep.model_dump(exclude_none=True)
    body["vector_store_id"] = vector_store_id
    if texts is not None:
        body["texts"] = [document_of(text) for text in texts]
    if document_ids is not None:
        body["document_ids"] = list(document_ids)
    return body
