"""What the tiers of this machine keep for a tenant: listed, and forgotten when asked to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chunkcache.console.states import Cleared, RecordState
from chunkcache.errors import InvalidRequest
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.chunk import ChunkKey
    from chunkcache.service.runtime import Runtime
    from chunkcache.store.layout import MetaEntry

_ID_BYTES = 32
_BATCH = 1000
_ALL = 2**63


class Holdings:
    """A tenant's records. Thread-safe.

    Args:
        runtime: gives the tiers; loads the model if nobody has yet.
        salt_of: the salt of a tenant's keys.
    """

    def __init__(self, runtime: Callable[[], Runtime], salt_of: Callable[[str], bytes]) -> None:
        self._runtime = runtime
        self._salt_of = salt_of

    def records(self, tenant: str, *, after: str | None, limit: int) -> list[RecordState]:
        """At most `limit` records on disk, in order of id, behind the one with that id.

        Raises:
            InvalidRequest: `after` is no id.
            StoreError: the disk tier cannot be read.
        """
        behind = _digest(after) if after is not None else b""
        return [
            _state(digest, entry)
            for tier in self._runtime().store.tiers
            if isinstance(tier, DiskTier)
            for digest, entry in tier.listed(tenant, after=behind, limit=limit)
        ]

    def disk_bytes(self, tenant: str) -> int:
        """What the tenant's records take on disk. O(records). Raises `StoreError`."""
        return sum(
            entry.size_bytes
            for tier in self._runtime().store.tiers
            if isinstance(tier, DiskTier)
            for _, entry in tier.listed(tenant, after=b"", limit=_ALL)
        )

    def clear(self, tenant: str) -> Cleared:
        """Forget all of the tenant's KV; what requests are reading lives until they end.

        On the device and in memory a chunk is told by its key, on disk by the terms it is kept on.
        Remote tiers, which other installations share, keep what they have.

        Raises:
            StoreError: the disk tier cannot be written; what was removed until then is.
        """
        runtime, salt = self._runtime(), self._salt_of(tenant)

        def is_theirs(key: ChunkKey) -> bool:
            return runtime.key(key.token_ids, salt) == key

        removed = {runtime.engine.chunk_tier: runtime.engine.chunks.forget(is_theirs)}
        runtime.store.flush(remote=False)  # what is still on its way to the disk
        for tier in runtime.store.tiers:
            if isinstance(tier, HostTier):
                removed[tier.name] = tier.forget(is_theirs)
            if isinstance(tier, DiskTier):
                removed[tier.name] = _forget(tier, tenant)
        return Cleared(removed=removed)


def _forget(tier: DiskTier, tenant: str) -> int:
    removed, after = 0, b""
    while found := tier.listed(tenant, after=after, limit=_BATCH):
        for digest, _ in found:
            tier.forget(digest)
        removed += len(found)
        after = found[-1][0]
    return removed


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != _ID_BYTES:
        raise InvalidRequest.of("after", text, "an id in this list", "start anew")
    return digest


def _state(digest: bytes, entry: MetaEntry) -> RecordState:
    terms = entry.terms
    return RecordState(
        id=digest.hex(), tokens=entry.num_tokens, size_bytes=entry.size_bytes,
        codec=entry.codec, created_at=entry.created_ns / 1e9,
        retention=terms.retention.name.lower(), priority=terms.priority,
        expires_at=None if terms.expires_s == math.inf else terms.expires_s,
    )  # fmt: skip
