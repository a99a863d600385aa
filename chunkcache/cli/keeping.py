"""`keep`, `quota`: on what terms KV is kept, and how much of it a tenant may have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from chunkcache.cli.context import shared
from chunkcache.cli.documents import Collection, Tenant
from chunkcache.cli.screen import console, visible
from chunkcache.errors import InvalidRequest, StoreError
from chunkcache.keep import DEFAULT_LIMIT, Keep, Limit

_MOST_DIGITS = 18  # below 2^63, as over HTTP


def keep(
    context: typer.Context,
    document_ids: Annotated[
        list[str] | None, typer.Argument(help="Ids, as `ls` shows them; none: all documents.")
    ] = None,
    retention: Annotated[
        Literal["normal", "warmed", "pinned"],
        typer.Option(
            "--retention",
            help="pinned: not evicted, up to half the disk; warmed: not for given documents.",
        ),
    ] = "normal",
    priority: Annotated[
        int, typer.Option("--priority", min=-16, max=16, help="A hit counts 2^priority times.")
    ] = 0,
    expires_after_s: Annotated[
        float | None,
        typer.Option("--expires-after-s", help="From then on first to leave; served until then."),
    ] = None,
    tenant: Tenant = "public",
    collection: Collection = "default",
) -> None:
    """Pin, prefer or let expire stored KV; what is left out is as usual again. Loads the model."""
    if expires_after_s is not None and not 0 < expires_after_s <= 315_360_000:
        raise InvalidRequest.of(
            "--expires-after-s", expires_after_s, "above 0 and at most ten years",
            "leave it out for KV that does not expire",
        )  # fmt: skip
    wish = Keep(retention=retention, priority=priority, expires_after_s=expires_after_s)
    with shared(context).open() as cache:
        kept = cache.keeping.keep(
            wish, tenant=tenant, collection=collection, document_ids=document_ids or None
        )
    console().print(f"{kept.stored} of {kept.chunks} chunks are stored, and kept on these terms")
    say_what_is_not_pinned(kept.warmed_only)


def say_what_is_not_pinned(chunks: int) -> None:
    """Of those that were to be."""
    if chunks:
        console().print(
            f"{chunks} of them are kept as warmed: pins take half of the tier at most. "
            "Raise store.disk_capacity_bytes, or take pins back and pin these again"
        )


def quota(
    context: typer.Context,
    limit: Annotated[
        str | None,
        typer.Option(
            "--set", help="Bytes of each tier; none: no limit; default: as store.quota_bytes says."
        ),
    ] = None,
    tenant: Tenant = "public",
) -> None:
    """Show or set what a tenant may hold. A running server goes by it from its next answer on."""
    from chunkcache.server.auth import ApiKeys
    from chunkcache.service.quotas import Quotas

    settings = shared(context).settings
    quotas = Quotas(settings.home / "quotas.json", settings.store.quotas)
    if limit is not None:
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"home: cannot make {settings.home}: {error.strerror}") from error
        keys = ApiKeys.load(settings.server.api_keys_file)
        if quotas.limit_bytes(tenant) is None:  # else it may be lifted
            keys.check_tenant(tenant, field="--tenant")
        quotas.put(tenant, _limit(limit))
    held = quotas.limit_bytes(tenant)
    shown = "no limit" if held is None else f"{held} bytes of each tier"
    console().print(f"{visible(tenant)}: {shown}", markup=False)


def _limit(text: str) -> Limit:
    said = text.strip()
    if said.lower() == "none":
        return None
    if said.lower() == DEFAULT_LIMIT:
        return DEFAULT_LIMIT
    if not said.isdecimal() or len(said) > _MOST_DIGITS:
        limit = f"whole bytes of at most {_MOST_DIGITS} digits, none or default"
        raise InvalidRequest.of("--set", text, limit, "for example 5000000000")
    return int(said)
