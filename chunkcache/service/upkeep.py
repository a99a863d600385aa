"""What operators do with a store and need the model's tokenizer for, but not its weights."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from chunkcache.chunk import ChunkKey, Retention, pack_token_ids
from chunkcache.codec_spec import is_read, lossy_places, stored_under
from chunkcache.engine.loading import load_fingerprint, load_tokenizer
from chunkcache.engine.prompt import PromptBuilder
from chunkcache.errors import CorruptRecord, InvalidRequest, NotFound
from chunkcache.retrieval.open_catalog import open_catalog
from chunkcache.service.tenants import salting_secret, tenant_salt
from chunkcache.store import store_path
from chunkcache.store.archive import ArchiveReader, ArchiveWriter, Preamble
from chunkcache.store.layout import MetaEntry, map_bytes_for, padded, pages_bytes
from chunkcache.store.lmdb_env import RecordEnv
from chunkcache.store.record import under_digest
from chunkcache.store.upkeep import Stored, opened, take_inventory, why_useless

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import lmdb

    from chunkcache.chunk import Terms
    from chunkcache.config import Settings
    from chunkcache.store.archive import Archived
    from chunkcache.store.record import RecordHeader

_OF_DOCUMENTS = (Retention.NORMAL, Retention.WARMED, Retention.PINNED)
"""What is kept on these terms is of a document in the catalog, or was."""


@dataclass(slots=True)
class ExportReport:
    """What went into an archive."""

    exported: int = 0
    corrupt: int = 0  # left out


@dataclass(slots=True)
class ImportReport:
    """What an archive's records became."""

    imported: int = 0
    already_there: int = 0
    corrupt: int = 0  # in the archive; left out
    unread: int = 0  # of a codec that this installation does not read; left out
    stopped_reason: str = ""


class Keys:
    """Keys of chunks as the configured model's runtime makes them; its weights are not loaded.

    Raises:
        ModelNotFound: nothing at that id or path.
    """

    def __init__(self, settings: Settings) -> None:
        self.fingerprint = load_fingerprint(settings)
        self.prompts = PromptBuilder(load_tokenizer(settings), settings.prompt)
        self._secret = salting_secret(settings)
        born = pack_token_ids(self.prompts.born_prefix)
        self.preamble = Preamble(
            fingerprint=self.fingerprint.hex(),
            born_prefix=hashlib.blake2b(born, digest_size=16).hexdigest(),
            model=settings.model.name,
        )

    def of(self, token_ids: Sequence[int], tenant: str) -> ChunkKey:
        """The key of a tenant's chunk."""
        return ChunkKey.of(
            token_ids,
            fingerprint=self.fingerprint,
            born_prefix=self.prompts.born_prefix,
            salt=tenant_salt(self._secret, tenant),
        )

    def of_record(self, header: RecordHeader, tenant: str) -> ChunkKey:
        """The key under which a tenant asks for a record's tokens."""
        return self.of(np.frombuffer(header.packed_token_ids, "<u4").tolist(), tenant)


# ---------------------------------------------------------------- garbage


def find_garbage(settings: Settings) -> dict[str, list[Stored]]:
    """Records that nobody will ask for again, by the reason: other model, other codec, expired, or
    of no document any more.

    Documents of request bodies are in no catalog, so their records wait for their eviction; texts
    that were warmed or pinned ahead of requests are of no document either, and do go. A pin says
    that a record does not leave to make room, not that it outlives what it was made of.

    Raises:
        StoreError: store or catalog cannot be read.
        ModelNotFound: without the model nobody can say what is asked for.

    Cost: reads every entry and every chunk's text; no record.
    """
    # in this order: what is ingested from now on is not looked at
    inventory = take_inventory(store_path(settings), settings.store.disk_capacity_bytes)
    found: dict[str, list[Stored]] = {}
    if not inventory.stored:
        return found
    keys = Keys(settings)
    live = _live(settings, keys)
    for one in inventory.stored:
        entry = one.entry
        reason = why_useless(entry, fingerprint=keys.fingerprint, codecs=settings.store.codecs)
        if reason is None and entry.terms.retention in _OF_DOCUMENTS and one.digest not in live:
            reason = "of no document"
        if reason is not None:
            found.setdefault(reason, []).append(one)
    return found


def _refuse(damage: CorruptRecord) -> None:
    """Whose records a damaged passage wants cannot be said."""
    raise damage


def _live(settings: Settings, keys: Keys) -> set[bytes]:
    """Where the records of all chunks of all documents lie."""
    live: set[bytes] = set()
    with closing(open_catalog(settings)) as catalog:
        for tenant, collection in catalog.entries.generations():
            with suppress(NotFound):  # deleted meanwhile
                for chunk in catalog.chunks(tenant, collection, _refuse):
                    digest = keys.of(keys.prompts.chunk_ids(chunk), tenant).digest
                    live |= {digest, *lossy_places(digest, settings.store.codecs)}
    return live


# ---------------------------------------------------------------- moving


def export_records(
    settings: Settings, stream: BinaryIO, *, tenant: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportReport:  # fmt: skip
    """Write every record that the tenant's requests would find here into an archive.

    Services may go on meanwhile. `on_progress` is told how many records of the store were looked
    at, and of how many.

    Raises:
        StoreError: the store cannot be read.
        ModelNotFound: without the model nobody can say what would be found.
    """
    path, capacity_bytes = store_path(settings), settings.store.disk_capacity_bytes
    keys, report = Keys(settings), ExportReport()
    inventory = take_inventory(path, capacity_bytes)
    writer = ArchiveWriter(stream, keys.preamble)
    with opened(path, capacity_bytes) as env:
        for done, one in enumerate(inventory.stored):
            on_progress(done, len(inventory.stored))
            useless = why_useless(
                one.entry, fingerprint=keys.fingerprint, codecs=settings.store.codecs
            )
            if env is None or useless:
                continue
            try:
                with env.reading() as txn:
                    found = _parts(env, txn, one, keys, tenant)
            except CorruptRecord:
                report.corrupt += 1
                continue
            if found is not None:
                writer.add(found[0], one.entry.terms, found[1])
    on_progress(len(inventory.stored), len(inventory.stored))
    writer.end()
    report.exported = writer.records
    return report


def _parts(
    env: RecordEnv, txn: lmdb.Transaction[memoryview], one: Stored, keys: Keys, tenant: str
) -> tuple[bytes, list[bytes]] | None:
    """Header and slabs of a record, verified; None: it is another tenant's, or has gone."""
    if env.entry(txn, one.digest) is None:
        return None
    header = env.header(txn, one.digest)
    if header.digest != keys.of_record(header, tenant).digest:
        return None
    slabs = [padded(bytes(slab)) for slab in env.slabs(txn, header)]
    return env.encoded_header(txn, one.digest), slabs


def import_records(
    settings: Settings, stream: BinaryIO, *, tenant: str,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ImportReport:  # fmt: skip
    """Take an archive's records in as the tenant's own, under keys of this installation.

    A chunk has one record: a rounded one is not taken in where an exact one is, and leaves, with
    its terms handed over, where an exact one comes.

    Each is verified and published in a transaction of its own: an import that is interrupted leaves
    whole records, and one that is run again changes nothing. It evicts nothing. `on_progress` is
    told how many have been read.

    Raises:
        InvalidRequest: it was made with another model or prompt, or there is no disk tier.
        StoreError: the stream is no archive, is damaged, or ends before its end; or the store
            cannot be written. What was taken in until then stays.
    """
    capacity_bytes = settings.store.disk_capacity_bytes
    if not capacity_bytes:
        raise InvalidRequest.of(
            "store.disk_capacity_bytes", 0, "above 0", "records are imported into the disk tier"
        )
    reader, keys = ArchiveReader(stream), Keys(settings)
    _refuse_others(reader.preamble, keys.preamble)
    report = ImportReport()
    path = store_path(settings)
    with closing(RecordEnv(path, map_bytes_for(capacity_bytes))) as env:
        try:
            for done, archived in enumerate(reader.records(capacity_bytes), start=1):
                _take_in(env, archived, keys, settings, tenant, report)
                on_progress(done)
                if report.stopped_reason:
                    break
        finally:
            env.sync()
    return report


def _refuse_others(theirs: Preamble, ours: Preamble) -> None:
    if theirs.fingerprint != ours.fingerprint:
        raise InvalidRequest(
            f"archive: its KV is of model {theirs.model[:80]!r} (fingerprint "
            f"{theirs.fingerprint[:12]}), this installation has {ours.model!r} "
            f"({ours.fingerprint[:12]}). Hint: same weights, tokenizer, model.dtype and "
            "model.weights on both sides; chunkcache doctor prints the fingerprint."
        )
    if theirs.born_prefix != ours.born_prefix:
        raise InvalidRequest(
            "archive: its KV was computed after another text. Hint: same prompt.system and "
            "prompt.born_after on both sides."
        )


def _take_in(
    env: RecordEnv, archived: Archived, keys: Keys, settings: Settings, tenant: str,
    report: ImportReport,
) -> None:  # fmt: skip
    header, codec = archived.header, archived.header.codec
    if archived.slabs is None or header.fingerprint != keys.fingerprint:
        report.corrupt += 1
        return
    if not is_read(codec, settings.store.codecs):
        report.unread += 1
        return
    key = keys.of_record(header, tenant)
    digest = stored_under(key.digest, codec)
    encoded = padded(under_digest(archived.encoded, key.digest))
    size_bytes = sum(pages_bytes(len(value)) for value in (encoded, *archived.slabs))
    with env.writing(size_bytes) as txn:
        if any(_is_there(env, txn, place, header) for place in {digest, key.digest}):
            report.already_there += 1
            return
        used_bytes = env.used_bytes(txn)
        if used_bytes + size_bytes > settings.store.disk_capacity_bytes:
            report.stopped_reason = (
                f"the store is full: {used_bytes} of {settings.store.disk_capacity_bytes} bytes. "
                "Hint: raise store.disk_capacity_bytes, or chunkcache gc --yes"
            )
            return
        terms = replace(archived.terms, tenant=tenant)
        if digest == key.digest:
            terms = _relieve(env, txn, lossy_places(digest, settings.store.codecs), terms)
        entry = MetaEntry(
            size_bytes, header.num_tokens, time.time_ns(), keys.fingerprint, codec, terms
        )
        env.put(txn, digest, entry, encoded, archived.slabs)
    report.imported += 1


def _relieve(
    env: RecordEnv, txn: lmdb.Transaction[bytes], places: Sequence[bytes], terms: Terms
) -> Terms:
    """Remove rounded copies. The terms of what takes their place: see `Terms.after`."""
    for place in places:
        packed = env.entry(txn, place)
        if packed is not None:
            with suppress(CorruptRecord):  # of a damaged entry the terms are not known
                terms = terms.after(MetaEntry.unpack(packed).terms, time.time())
            env.remove(txn, place)
    return terms


def _is_there(
    env: RecordEnv, txn: lmdb.Transaction[bytes], digest: bytes, header: RecordHeader
) -> bool:
    """Whether the store has these very bytes of KV, or others for the same tokens."""
    if env.entry(txn, digest) is None:
        return False
    try:
        return env.header(txn, digest).packed_token_ids == header.packed_token_ids
    except CorruptRecord:
        return False  # what is imported takes its place
