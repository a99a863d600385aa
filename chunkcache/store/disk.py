"""Chunk KV in LMDB: survives restarts, shared by the processes of one machine."""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from chunkcache.codec_spec import stored_under
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.base import TierUsage
from chunkcache.store.codec.readable import ReadableCodecs
from chunkcache.store.frame import frame_of
from chunkcache.store.index import RecordIndex
from chunkcache.store.layout import MetaEntry, entry_of, map_bytes_for, padded
from chunkcache.store.leased import load_record
from chunkcache.store.lender import Lender
from chunkcache.store.lmdb_env import RecordEnv
from chunkcache.store.mirror import Mirror
from chunkcache.store.policy import Refusal
from chunkcache.store.recoder import Recoder
from chunkcache.store.sizes import RecordSizes
from chunkcache.store.syncing import Syncing
from chunkcache.store.turnstile import Turnstile
from chunkcache.store.windowed import WindowedFrequencyPolicy
from chunkcache.store.writer import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import lmdb
    import torch

    from chunkcache.chunk import ChunkKey, ChunkKV, KVGeometry, Retention, Terms
    from chunkcache.store.base import RecordReader
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.frame import Frame
    from chunkcache.store.leased import LeasedRecord
    from chunkcache.store.policy import Policy, Room
    from chunkcache_kernels.slabs import SlabReader

log = structlog.get_logger(__name__)

_OVERHEAD_BYTES = 256 * 1024  # of one record: header, and slabs rounded up to whole pages


class DiskTier:
    """Records in an LMDB environment, at most `capacity_bytes` of it. Thread-safe.

    A record is published in one transaction: a crash leaves it absent or whole. Every load verifies
    checksums and compares token ids, and copies out before its transaction ends. Several processes
    may write the same path: the budget is checked against the store itself inside the transaction
    that fills it (`RecordWriter`).

    Args:
        path: folder of the environment.
        capacity_bytes: budget in file pages, for the records of all models.
        codec: how new records are coded. Records of lossless codecs are found too, and come
            first; those of another lossy codec are not, but for `cold`.
        fingerprint: of the model; records of another model are not found.
        geometry: of the model; a record that says it is of another one is corrupt.
        policy: who leaves first; `WindowedFrequencyPolicy` unless given.
        on_evict: called with the number of records evicted.
        sync_interval_s: how often a background thread flushes to the device.
        map_bytes: overrides the size of the map, half as large again as the budget.
        cold: what `recode` may be asked to code with.
        reader: reads many layers in one call, where there is one.

    Raises:
        StoreError: the environment cannot be opened.
    """

    name = "disk"
    durable = True
    remote = False

    def __init__(
        self,
        path: Path,
        capacity_bytes: int,
        codec: Codec,
        *,
        fingerprint: bytes,
        geometry: KVGeometry | None = None,
        policy: Policy | None = None,
        on_evict: Callable[[int], None] = lambda _: None,
        sync_interval_s: float = 5.0,
        map_bytes: int | None = None,
        cold: Codec | None = None,
        reader: SlabReader | None = None,
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._codec = codec
        self._codecs = ReadableCodecs(codec, cold)
        self._fingerprint = fingerprint
        map_bytes = map_bytes or map_bytes_for(capacity_bytes)
        self._env = RecordEnv(path, map_bytes, reader=reader)
        self._mirror = Mirror(policy or WindowedFrequencyPolicy(capacity_bytes))
        self.on_quota = self._mirror.on_quota  # see `Retaining`
        self._writer = RecordWriter(self._env, self._mirror, capacity_bytes, on_evict)
        self._index = RecordIndex(self._env, self._codecs, fingerprint, geometry)
        self._lender = Lender(
            self, self._env, self._mirror, self._index, self._codecs, self._writer
        )
        self._recoder = Recoder(self, self._env, self._mirror, self._writer)
        self._sizes = RecordSizes(codec, geometry, fingerprint)
        self._verbs = Turnstile()
        self._closed = False
        self._largest_share = 0.0  # of a record's KV that its coded layers took, so far
        try:
            self._load_mirror()
        except StoreError:
            self._env.close()
            raise
        self._syncing = Syncing(self._sync, sync_interval_s)

    # ------------------------------------------------------------ the verbs

    def open(self, key: ChunkKey) -> RecordReader | None:
        """See `Tier`. Reads the header alone; it must be closed before the tier is.

        Raises:
            StoreError: the environment cannot be read.
        """
        with self._using(), ExitStack() as ends:
            reader = self._opened(key, ends)
            ends.pop_all()
        return reader

    def open_many(self, keys: Sequence[ChunkKey]) -> list[RecordReader | StoreError | None]:
        """See `OpensTogether`. One transaction for all that are there and sound."""
        found: list[RecordReader | StoreError | None] = []
        with self._using(), ExitStack() as ends:
            lent = self._lender.lend_many(keys)
            for record in lent:
                if record is not None:
                    ends.enter_context(record)
            for key, record in zip(keys, lent, strict=True):
                if record is not None:
                    self._mirror.used(record.header.stored_digest)
                    found.append(record)
                    continue
                try:
                    found.append(self._opened(key, ends))
                except StoreError as error:
                    found.append(error)
            ends.pop_all()
        return found

    def _opened(self, key: ChunkKey, ends: ExitStack) -> RecordReader | None:
        """What is opened is closed with `ends`."""
        for digest in self._codecs.looks(key.digest):
            reader = self._lender.lend(key, digest)
            if reader is not None:
                ends.enter_context(reader)
                break
        else:
            digest = self._place_for(key)
        self._mirror.used(digest)
        return reader

    def get(self, key: ChunkKey) -> ChunkKV | None:
        """See `Tier`. Cost: one checksum pass and one copy of the record.

        Raises:
            StoreError: the environment cannot be read.
        """
        with self._using():
            record = None
            for digest in self._codecs.looks(key.digest):
                seen = None
                try:
                    with self._env.reading() as txn:
                        seen = self._env.entry(txn, digest)
                        record = self._load(txn, key, digest)
                except CorruptRecord:
                    self._lender.drop_corrupt(digest, seen)
                    raise
                if record is not None:
                    break
            else:
                digest = self._place_for(key)
            self._mirror.used(digest)
            return record

    def read_slabs(self, record: LeasedRecord, first: int, last: int, out: torch.Tensor) -> None:
        """Some layers of a record that `open` gave; see `RecordReader.read_layers`."""
        with self._using():
            self._lender.read(record, first, last, out)

    def give_back(self, record: LeasedRecord) -> None:
        """A record that `open` gave is not read any more."""
        self._mirror.give_back(record.header.stored_digest)

    def put(self, record: ChunkKV) -> bool:
        """See `Tier`. When it returns, the record survives a kill of the process.

        A record that another codec rounded is not admitted: its bytes would pass for better ones.
        None is where the file can only be read.

        Raises:
            StoreError: map or disk full, LMDB failed, or the record contradicts itself; it was
                dropped whole.
        """
        if self._env.reads_only:
            return False
        with self._using():
            digest = self._place_for(record.key)
            held = self._find(record.key)
            if held and (record.rounded_by or held[0] in (record.key.digest, digest)):
                self._mirror.used(held[0])
                return True
            if record.rounded_by not in (None, self._codec.name):
                return False
            frame, entry = self._coded(record)
            share = frame.coded_bytes / max(1, record.size_bytes)
            self._largest_share = max(self._largest_share, share)
            self._sizes.saw(entry)
            rounded = self._codecs.places(digest)[1:] if digest == record.key.digest else ()
            return self._writer.publish(digest, entry, frame.header, frame.slabs, worse=rounded)

    def why_not(self, record: ChunkKV) -> Refusal:
        """See `Choosing`. Codes the record once more."""
        if record.rounded_by not in (None, self._codec.name):
            return Refusal(f"its bytes were rounded by {record.rounded_by}", "store.codec")
        return self._mirror.why_not(self._place_for(record.key), self._coded(record)[1])

    def size_for(self, num_tokens: int) -> int | None:
        """See `Foresees`."""
        return self._sizes.of(num_tokens)

    def room_for(self, tenant: str) -> Room:
        """See `Foresees`. Raises `StoreError`: the environment cannot be read."""
        with self._using():
            return self._writer.room_for(tenant)

    def contains(self, key: ChunkKey) -> bool:
        """See `Tier`. Reads the header alone; damage to the slabs is found by `get`."""
        return self.codec_of(key) is not None

    def codec_of(self, key: ChunkKey) -> str | None:
        """See `SeveralCodecs`. As `contains`."""
        return self.codecs_of([key])[0]

    def codecs_of(self, keys: Sequence[ChunkKey]) -> list[str | None]:
        """See `SeveralCodecs`. One transaction."""
        with self._using(), self._env.reading() as txn:
            return [(self._index.find(txn, key) or (None, None))[1] for key in keys]

    def delete(self, key: ChunkKey) -> bool:
        """See `Tier`. A damaged record was there too."""
        with self._using():
            was_there = False
            for digest in self._codecs.places(key.digest):
                with suppress(CorruptRecord), self._env.reading() as txn:
                    if self._index.header(txn, key, digest) is None:
                        continue
                self._writer.remove(digest)
                was_there = True
            return was_there

    def retain(self, key: ChunkKey, terms: Terms, *, exactly: bool = False) -> Retention | None:
        """See `Retaining`. Raises `StoreError`: it stays on the terms that it has."""
        with self._using():
            # looked for in the transaction that writes: it may move from one place to another
            return self._writer.retain(
                lambda txn: self._index.find(txn, key), terms, exactly=exactly
            )

    def on_wait(self, keys: Iterable[ChunkKey]) -> None:
        """See `Retaining`. Nothing is read."""
        self._mirror.on_wait(self._codecs.places_of(keys))

    def on_wait_over(self, keys: Iterable[ChunkKey]) -> None:
        """See `Retaining`. Nothing is read, nor must the tier be open."""
        self._mirror.on_wait_over(self._codecs.places_of(keys))

    def listed(self, tenant: str, *, after: bytes, limit: int) -> list[tuple[bytes, MetaEntry]]:
        """At most `limit` records of a tenant, in order of digest, behind `after`. O(records).

        Raises:
            StoreError: the environment cannot be read.
        """
        found: list[tuple[bytes, MetaEntry]] = []
        with self._using(), self._env.reading() as txn:
            for digest, entry in self._index.entries(txn):
                if digest > after and entry.terms.tenant == tenant:
                    found.append((digest, entry))
                    if len(found) == limit:
                        break
        return found

    def entries(self) -> list[tuple[bytes, MetaEntry]]:
        """What `scan` names, and what is known of it. O(records). Raises `StoreError`."""
        with self._using(), self._env.reading() as txn:
            return list(self._index.entries(txn))

    def recode(self, digest: bytes, codec: Codec) -> int | None:
        """See `Recoder`. Raises `StoreError`: the record is as it was."""
        return self._recoder.recode(digest, codec)

    def forget(self, digest: bytes) -> None:
        """Remove what lies under a digest. Raises `StoreError`."""
        with self._using():
            self._writer.remove(digest)

    def scan(self) -> Iterator[bytes]:
        """See `Tier`. Records of this model that this codec's tier reads, as they are stored."""
        with self._using(), self._env.reading() as txn:
            return iter([digest for digest, _ in self._index.entries(txn)])

    def usage(self) -> TierUsage:
        """See `Tier`. Records of all models, codecs and processes; O(1)."""
        with self._using(), self._env.reading() as txn:
            return TierUsage(
                self._env.num_records(txn), self._env.used_bytes(txn), self._capacity_bytes
            )

    def has_room(self, size_bytes: int) -> bool:
        """See `Tier`. On disk a record takes a little more: 1 % and 256 KiB are allowed for.

        It is taken for coded no better than the worst that this process has written.
        """
        usage = self.usage()
        coded_bytes = math.ceil(size_bytes * (self._largest_share or 1.0) * 1.01)
        needed = coded_bytes + _OVERHEAD_BYTES
        return usage.size_bytes + needed <= usage.capacity_bytes

    def close(self) -> None:
        """See `Tier`. Waits for verbs that run. In a forked child, leaves the parent's alone.

        Raises:
            StoreError: the last flush failed; closed all the same.
        """
        if not self._env.is_ours:
            return
        self._syncing.stop()
        with self._verbs.alone():
            if self._closed:
                return
            self._closed = True
            try:
                self._env.sync()
            finally:
                self._env.close()

    # ------------------------------------------------------------ reading

    @contextmanager
    def _using(self) -> Iterator[None]:
        self._env.check_process()
        with self._verbs.passing():
            if self._closed:
                raise StoreError(f"store: {self._env.path} is closed")
            yield

    def _place_for(self, key: ChunkKey) -> bytes:
        """The digest that a record is put under."""
        return stored_under(key.digest, self._codec.name)

    def _find(self, key: ChunkKey) -> tuple[bytes, str] | None:
        """See `RecordIndex.find`."""
        with self._env.reading() as txn:
            return self._index.find(txn, key)

    def _load(
        self, txn: lmdb.Transaction[memoryview], key: ChunkKey, digest: bytes
    ) -> ChunkKV | None:
        header = self._index.header(txn, key, digest)
        if header is None:
            return None
        return load_record(self._env, txn, key, header, self._codecs.named(header.codec))

    # ------------------------------------------------------------ writing

    def _coded(self, record: ChunkKV) -> tuple[Frame, MetaEntry]:
        """What is written of a record, and its entry."""
        frame = frame_of(record, self._codec, self._fingerprint, padded=padded)
        name = self._codec.name
        return frame, entry_of(frame, record.num_tokens, self._fingerprint, name, record.terms)

    def _load_mirror(self) -> None:
        with self._env.reading() as txn:
            damaged = self._mirror.replace(txn.id(), self._env.entries(txn))
            seen = [self._env.entry(txn, digest) for digest in damaged]
        for digest, packed in zip(damaged, seen, strict=True):
            log.warning("meta_entry_corrupt", key=digest.hex()[:12], action="dropped")
            self._lender.drop_corrupt(digest, packed)

    def _sync(self) -> None:
        self._env.free_stale_readers()
        self._writer.sync()
