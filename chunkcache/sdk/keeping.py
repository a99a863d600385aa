"""What is warm, on what terms it is kept, and how much a tenant may hold. See `flows`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..keep import DEFAULT_LIMIT
from .calls import Call
from .results import reading
from .wishes import document_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..keep import Keep, Limit
    from ..protocol import Json
    from .flows import Flow
    from .wishes import Documents


@dataclass(frozen=True, slots=True)
class Kept:
    """How many chunks were meant, and how many of them are kept on these terms now.

    `warmed_only`: of these, those that are kept as warmed: pins have no place for them.
    """

    chunks: int
    stored: int
    warmed_only: int = 0


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may hold in each tier (None: no limit), and what it holds on disk.

    `disk_bytes` is None where nobody has looked: in the answer to who has set a quota.
    """

    tenant: str
    limit_bytes: int | None
    disk_bytes: int | None


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
        warmed_only = int(reply.get("warmed_only", 0))
        return Kept(int(reply["chunks"]), int(reply["stored"]), warmed_only)


def quota() -> Flow[Quota]:
    """The caller's own."""
    reply = yield Call("GET", "/v1/chunkcache/quota")
    return _quota_of(reply)


def set_quota(limit: Limit, tenant: str | None) -> Flow[Quota]:
    """Limit a tenant; None: the caller's."""
    whose = {} if tenant is None else {"tenant": tenant}
    if limit == DEFAULT_LIMIT:
        reply = yield Call("DELETE", "/v1/chunkcache/quota", query=whose)
    else:
        reply = yield Call("PUT", "/v1/chunkcache/quota", {"limit_bytes": limit, **whose})
    return _quota_of(reply)


def _quota_of(reply: Json) -> Quota:
    with reading("the quota"):
        limit, held = (_bytes(reply[figure]) for figure in ("limit_bytes", "disk_bytes"))
        return Quota(str(reply["tenant"]), limit, held)


def _bytes(said: Any) -> int | None:
    return None if said is None else int(said)


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
