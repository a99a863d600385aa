"""`stats`, `gc`, `purge`, `export`, `import`, `backup`: what operators do with the stored KV.

All may be used while a service runs on the same home folder.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.table import Table

from chunkcache.cli import read_by_nobody
from chunkcache.cli.context import shared
from chunkcache.cli.documents import Tenant, tenant_named
from chunkcache.cli.outputs import Overwrite, claim_file, claim_folder
from chunkcache.cli.screen import console, visible
from chunkcache.durable import whole_file
from chunkcache.errors import InvalidRequest, NotFound, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.store.upkeep import Inventory

Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would go.")]
Archive = Annotated[Path, typer.Argument(help="File; - is standard output or input.")]


def stats(
    context: typer.Context,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Address of a running service, for its hit rates."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what the disk tier holds, by model and tenant, and what tiers hit. Loads no model."""
    from chunkcache.store import store_path
    from chunkcache.store.upkeep import take_inventory

    settings = shared(context).settings
    inventory = take_inventory(store_path(settings), settings.store.disk_capacity_bytes)
    cold = settings.store.cold_codec
    found = _figures(inventory)
    if cold:
        found["cold"] = _rewritten(inventory, cold)
    if metrics is not None:
        from chunkcache.cli.scrape import tier_figures

        found["tiers"] = tier_figures(metrics)
    if as_json:
        typer.echo(json.dumps(found))
        return
    out = console()
    share = 100 * inventory.size_bytes / max(1, inventory.capacity_bytes)
    out.print(
        f"disk: {len(inventory.stored)} records, {inventory.size_bytes} of "
        f"{inventory.capacity_bytes} bytes ({share:.0f} %), {inventory.unreadable} unreadable"
    )
    if cold:
        records, size_bytes = _rewritten(inventory, cold).values()
        out.print(f"cold: {records} of them, {size_bytes} bytes, are in {cold}", markup=False)
    for title in ("models", "tenants", "tiers"):
        rows = found.get(title)
        if isinstance(rows, list) and rows:
            table = Table(*rows[0], box=None, header_style="bold")
            for row in rows:
                table.add_row(*(visible("-" if v is None else str(v)) for v in row.values()))
            out.print(table)


def gc(context: typer.Context, yes: Yes = False) -> None:
    """Remove records of other models and lossy codecs, expired ones, and of deleted passages."""
    from chunkcache.service.upkeep import find_garbage
    from chunkcache.store import store_path
    from chunkcache.store.upkeep import remove_stored

    settings = shared(context).settings
    garbage = find_garbage(settings)
    out = console()
    for reason, found in garbage.items():
        size_bytes = sum(one.entry.size_bytes for one in found)
        out.print(f"{reason}: {len(found)} records, {size_bytes} bytes")
    all_found = [one for found in garbage.values() for one in found]
    removed = 0
    if yes:
        removed = remove_stored(store_path(settings), settings.store.disk_capacity_bytes, all_found)
    out.print(f"{len(all_found)} records found, {removed} removed{_hint(yes, len(all_found))}")


def purge(
    context: typer.Context,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose.", callback=tenant_named)],
    documents: Annotated[
        bool, typer.Option("--documents", help="Their documents and collections too.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove a tenant's stored KV. What a running service has in memory stays there."""
    from chunkcache.store import store_path
    from chunkcache.store.upkeep import remove_stored, take_inventory

    common = shared(context)
    settings = common.settings
    path, capacity_bytes = store_path(settings), settings.store.disk_capacity_bytes
    inventory = take_inventory(path, capacity_bytes)
    found = [one for one in inventory.stored if one.entry.terms.tenant == tenant]
    size_bytes = sum(one.entry.size_bytes for one in found)
    out = console()
    out.print(
        f"KV of tenant {visible(tenant)}: {len(found)} records, {size_bytes} bytes",
        markup=False,
    )
    unnamed = sum(not one.entry.terms.tenant for one in inventory.stored)
    if unnamed:
        out.print(
            f"{unnamed} records are noted for no tenant and stay; chunkcache gc looks at them"
        )
    if documents:
        with common.catalog() as catalog:
            _purge_documents(catalog, tenant, yes=yes)
    removed = remove_stored(path, capacity_bytes, found) if yes else 0
    out.print(f"{removed} records removed{_hint(yes, len(found) + documents)}")


def _purge_documents(catalog: Catalog, tenant: str, *, yes: bool) -> None:
    collections = catalog.collections(tenant)
    count = 0
    for one in collections:
        with suppress(NotFound):  # somebody else deleted it meanwhile
            count += len(catalog.documents(tenant, one.id))
    console().print(f"{count} documents in {len(collections)} collections")
    if yes:
        catalog.delete_tenant(tenant)


def export(
    context: typer.Context,
    archive: Archive,
    overwrite: Overwrite = False,
    tenant: Tenant = "public",
) -> None:
    """Write a tenant's records into one file, to be imported on another machine or installation."""
    from chunkcache.service.upkeep import export_records

    settings = shared(context).settings
    if str(archive) != "-":
        claim_file("archive", archive, overwrite=overwrite)
    with _written(archive) as stream, shared(context).progress("records") as progress:
        step = progress.step("export")
        report = export_records(
            settings, stream, tenant=tenant,
            on_progress=lambda done, total: step(done, total=total),
        )  # fmt: skip
    note = f"{report.exported} records exported, {report.corrupt} corrupt ones left out"
    typer.echo(note, err=True)


def import_(context: typer.Context, archive: Archive, tenant: Tenant = "public") -> None:
    """Take in what `export` wrote, as the tenant's own. Safe to kill and to run again."""
    settings = shared(context).settings
    with _read(archive) as stream, shared(context).progress("records") as progress:
        from chunkcache.service.upkeep import import_records  # loads torch

        report = import_records(
            settings, stream, tenant=tenant, on_progress=progress.step("import")
        )
    out = console()
    out.print(
        f"{report.imported} records imported, {report.already_there} were there, "
        f"{report.corrupt} corrupt and {report.unread} of another lossy codec than "
        f"{' and '.join(settings.store.codecs)} left out",
        markup=False,
    )
    if report.stopped_reason:
        out.print(f"stopped: {report.stopped_reason}", style="yellow")
    if report.stopped_reason or report.corrupt:
        raise typer.Exit(1)


def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A new folder; the copy is the store in it.")],
) -> None:
    """Copy the disk tier while services use it, without its free pages, and verify the copy."""
    from chunkcache.store import store_path
    from chunkcache.store.upkeep import back_up

    settings = shared(context).settings
    claim_folder("folder", folder)
    report = back_up(store_path(settings), settings.store.disk_capacity_bytes, folder)
    console().print(
        f"{report.records} records, {report.size_bytes} bytes: {report.ok} ok, "
        f"{report.corrupt} corrupt"
    )
    if not report.clean:
        raise typer.Exit(1)


def _hint(yes: bool, found: int) -> str:
    return "" if yes or not found else ". Hint: --yes removes them"


def _rewritten(inventory: Inventory, codec: str) -> dict[str, int]:
    sizes = [one.entry.size_bytes for one in inventory.stored if one.entry.codec == codec]
    return {"records": len(sizes), "bytes": sum(sizes)}


def _figures(inventory: Inventory) -> dict[str, object]:
    models = [
        {"model": model, "codec": codec, "records": records, "bytes": size}
        for (model, codec), (records, size) in inventory.by_model().items()
    ]
    tenants = [
        {"tenant": tenant or "(none noted)", "records": records, "bytes": size}
        for tenant, (records, size) in inventory.by_tenant().items()
    ]
    return {
        "records": len(inventory.stored), "size_bytes": inventory.size_bytes,
        "capacity_bytes": inventory.capacity_bytes, "unreadable": inventory.unreadable,
        "models": models, "tenants": tenants,
    }  # fmt: skip


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name only once it is whole; or standard output."""
    if str(path) == "-":
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            read_by_nobody(sys.stdout)
            raise StoreError(
                "archive: standard output was closed before all of it was written. Hint: look at "
                "what reads it"
            ) from error
        return
    with whole_file(path) as file:
        yield file


@contextmanager
def _read(path: Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = path.open("rb")
    except OSError as error:
        hint = "name what chunkcache export wrote"
        raise InvalidRequest(
            f"archive: cannot read {path}: {error.strerror}. Hint: {hint}"
        ) from error
    with stream:
        yield stream
