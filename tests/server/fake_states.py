"""Where the fake service's chunks have their KV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkcache.console.states import ChunkState, Cleared, DocumentState, Kept, RecordState
from chunkcache.errors import NotFound
from chunkcache.keep import DEFAULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chunkcache.keep import Limit
    from chunkcache.protocol import DocumentInfo


class FakeStates:
    """Every document has one chunk, whose KV is in the host tier unless its text says `cold`."""

    def __init__(self, service: Any) -> None:
        self._text = service.document_text

    def of_chunks(
        self, document_id: str, *, offset: int, limit: int, **of: str
    ) -> tuple[DocumentInfo, list[ChunkState]]:
        info, text = self._text(document_id, **of)
        chunk = ChunkState(
            chunk_id=f"{document_id}-0", ordinal=0, title=info.title, text=text, start_char=0,
            tokens=1, end_char=len(text), tier=None if "cold" in text else "host",
        )  # fmt: skip
        return info, [chunk][offset : offset + limit]

    def of_documents(self, document_ids: Sequence[str], **of: str) -> list[DocumentState]:
        tiers = {i: self.of_chunks(i, offset=0, limit=1, **of)[1][0].tier for i in document_ids}
        return [
            DocumentState(document_id=i, chunks=1, counted=1, tiers={tier: 1} if tier else {})
            for i, tier in tiers.items()
        ]


class FakeKeeping:
    """Every document and text has one chunk, which is stored; `asked` is what was wished for."""

    def __init__(self, service: Any) -> None:
        self._text = service.document_text
        self._store = service.collection
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    def check_documents(self, tenant: str, collection: str, document_ids: Iterable[str]) -> None:
        self._store(collection, tenant=tenant)
        for document_id in document_ids:
            try:
                self._text(document_id, tenant=tenant, collection=collection)
            except NotFound as error:
                raise NotFound(error.message, param="document_ids") from error

    def keep(self, keep: Any, **which: Any) -> Kept:
        self._store(which["collection"], tenant=which["tenant"])
        self.asked.append((keep, which))
        count = len(which["document_ids"] or which["texts"])
        return Kept(chunks=count, stored=count, warmed_only=count // 2)


class FakeQuotas:
    """Kept as long as the service."""

    def __init__(self) -> None:
        self.limits: dict[str, int | None] = {}

    def limit_bytes(self, tenant: str) -> int | None:
        return self.limits.get(tenant)

    def put(self, tenant: str, limit: Limit) -> None:
        self.limits.pop(tenant, None)
        if limit != DEFAULT_LIMIT:
            self.limits[tenant] = limit


class FakeHoldings:
    """Every tenant has 250 records, until they are cleared."""

    def __init__(self) -> None:
        self.cleared: set[str] = set()

    def records(self, tenant: str, *, after: str | None, limit: int) -> list[RecordState]:
        ids = [] if tenant in self.cleared else [f"{number:064x}" for number in range(250)]
        shown = [name for name in ids if after is None or name > after][:limit]
        return [
            RecordState(
                id=name, tokens=1, size_bytes=4096, codec="raw", created_at=0.0,
                retention="warmed", priority=0, expires_at=None,
            )
            for name in shown
        ]  # fmt: skip

    def disk_bytes(self, tenant: str) -> int:
        return sum(one.size_bytes for one in self.records(tenant, after=None, limit=1000))

    def clear(self, tenant: str) -> Cleared:
        held = 0 if tenant in self.cleared else 250
        self.cleared.add(tenant)
        return Cleared(removed={"disk": held})


def furnish(service: Any) -> None:
    """Give a fake service all of these."""
    service.kv_states = FakeStates(service)
    service.holdings = FakeHoldings()
    service.keeping = FakeKeeping(service)
    service.quotas = FakeQuotas()
    service.set_quota = service.quotas.put
