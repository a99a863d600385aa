"""A tier on another machine: frames under names that hold digest, codec and format."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.base import NO_LIMIT, TierAtRest, TierUsage
from chunkcache.store.frame import frame_of, is_of, unframed
from chunkcache.store.reader import HeldRecord
from chunkcache.store.record import DIGEST_BYTES, check_size, decode_header, said_length
from chunkcache.store.remote.breaker import Breaker, BreakerState
from chunkcache.store.remote.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV, KVGeometry
    from chunkcache.store.base import RecordReader
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.record import RecordHeader
    from chunkcache.store.remote.base import Blobs

log = structlog.get_logger(__name__)

_FIRST_BYTES = 64 * 1024  # read first: the header of a chunk of 4,000 tokens fits
_HEADER_TOKEN_BYTES = 16  # about what a token takes in it
_LOOKS_AT_A_TIME = 64
_ATTEMPTS = 4  # to read a record that others replace meanwhile
_WRITE_PATIENCE = 10  # a write, which nobody waits for, may take so many times as long as a read


class RemoteTier:
    """Records as `Blobs`. Thread-safe. What comes back is checked as if an enemy had sent it.

    Sizes are compared with what the key and the model allow before anything is allocated, then
    checksums, then token ids. A record that fails is removed and computed again. Checksums are no
    signatures: who may write to the tier may change answers.

    Args:
        name: of the tier.
        blobs: where records are; they hold nothing but records of `codec`.
        codec: how new records are coded; records of another codec are not found.
        fingerprint: of the model; records of another model are not found.
        geometry: of the model; records of another are corrupt. None: any.
        timeout_s: for reading a record, and for a look whether it is there.
        breakers: for reads and for writes, apart: a full or read-only tier is still read.
    """

    durable = True
    remote = True

    def __init__(
        self,
        name: str,
        blobs: Blobs,
        codec: Codec,
        *,
        fingerprint: bytes,
        geometry: KVGeometry | None = None,
        timeout_s: float = 2.0,
        breakers: tuple[Breaker, Breaker] | None = None,
    ) -> None:
        self.name = name
        self._blobs = blobs
        self._codec = codec
        self._fingerprint = fingerprint
        self._geometry = geometry
        reading, writing = breakers or (Breaker(), Breaker())
        self._reads = Guard(name, "read", reading, timeout_s)
        self._writes = Guard(name, "write", writing, timeout_s * _WRITE_PATIENCE)

    @property
    def breakers(self) -> dict[str, Breaker]:
        """By the kind of call."""
        return {"read": self._reads.breaker, "write": self._writes.breaker}

    # ------------------------------------------------------------ the verbs

    def open(self, key: ChunkKey) -> RecordReader | None:
        """See `Tier`. Reads all of it at once: nothing on another machine can be leased.

        Raises:
            StoreError: the tier failed, took too long, or is at rest.
        """
        record = self.get(key)
        return HeldRecord(record) if record is not None else None

    def get(self, key: ChunkKey) -> ChunkKV | None:
        """See `Tier`. Two round trips; one where there is nothing, four where it is damaged.

        Raises:
            StoreError: the tier failed, took too long, or is at rest.
        """
        try:
            return self._reads.run(lambda: self._load(key))
        except CorruptRecord:
            self._drop_corrupt(key)
            raise

    def put(self, record: ChunkKV) -> bool:
        """See `Tier`. A record that is there is not written again.

        One that another codec rounded is not admitted: its bytes would pass for better ones.

        Raises:
            StoreError: the tier failed, took too long, or is at rest; or the record contradicts
                itself.
        """
        if self._holds(record.key, if_corrupt=False):
            return True
        if record.rounded_by not in (None, self._codec.name):
            return False
        frame = frame_of(record, self._codec, self._fingerprint)
        parts = [frame.header, *frame.slabs]
        if sum(map(len, parts)) > self._blobs.most_bytes:
            return False
        self._writes.run(lambda: self._blobs.write(_name_of(record.key), parts))
        return True

    def contains(self, key: ChunkKey) -> bool:
        """See `Tier`. Reads the header alone; damage to the layers is found by `get`."""
        return self._holds(key, if_corrupt=False)

    def contains_many(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `AskedTogether`. A round trip for each `_LOOKS_AT_A_TIME`, each within the limit.

        Raises:
            StoreError: the tier failed, took too long, or is at rest.
        """
        held: list[bool] = []
        for first in range(0, len(keys), _LOOKS_AT_A_TIME):
            batch = keys[first : first + _LOOKS_AT_A_TIME]
            held += self._reads.run(partial(self._look_at, batch))
        return held

    def delete(self, key: ChunkKey) -> bool:
        """See `Tier`. A damaged record was there too."""
        if not self._holds(key, if_corrupt=True):
            return False
        self._writes.run(lambda: self._blobs.remove(_name_of(key)))
        return True

    def scan(self) -> Iterator[bytes]:
        """See `Tier`. Records of this codec, of all models."""
        return iter([digest for digest, _ in self._listed()])

    def usage(self) -> TierUsage:
        """See `Tier`. Records of this codec, of all models. Cost: a listing."""
        sizes = [size for _, size in self._listed()]
        return TierUsage(len(sizes), sum(sizes), NO_LIMIT)

    def has_room(self, size_bytes: int) -> bool:
        """See `Tier`. As far as is known without asking."""
        if any(breaker.state is not BreakerState.CLOSED for breaker in self.breakers.values()):
            raise TierAtRest(f"store: {self.name} rests, because it failed several times in a row")
        return size_bytes < self._blobs.most_bytes

    def close(self) -> None:
        """See `Tier`."""
        self._blobs.close()

    # ------------------------------------------------------------ reading

    def _load(self, key: ChunkKey) -> ChunkKV | None:
        before = None
        for _ in range(_ATTEMPTS):
            encoded = self._read_header(key)
            if encoded is None:
                return None
            body = None
            try:
                header = decode_header(encoded)
                if not is_of(header, key, self._fingerprint, self._codec):
                    return None
                check_size(header, self._geometry, self._blobs.most_bytes)
                body = self._read_body(key, len(encoded), header)
                return unframed(header, body, key, self._codec)
            except CorruptRecord:
                # header and layers of two records, where one took the other's place between the
                # two reads; damage is what is read a second time
                if (encoded, body) == before:
                    raise
                before = (encoded, body)
        raise StoreError(f"record {key.hex} is replaced faster than it can be read")

    def _read_body(self, key: ChunkKey, start: int, header: RecordHeader) -> bytes:
        stop = start + sum(header.slab_lengths) + 1  # one more byte would be one too many
        return self._blobs.read(_name_of(key), start, stop) or b""

    def _read_header(self, key: ChunkKey) -> bytes | None:
        """The header as it is encoded, not verified; None: no such record."""
        name = _name_of(key)
        found = self._blobs.read(name, 0, _FIRST_BYTES)
        if not found:
            return None
        length = said_length(found)
        most = _FIRST_BYTES + 64 * len(key.token_ids)
        if length > most:
            raise CorruptRecord(f"record {key.hex}: its header says it has {length} bytes")
        if length > len(found):
            found = self._blobs.read(name, 0, length) or b""
        return found[:length]

    def _holds(self, key: ChunkKey, *, if_corrupt: bool) -> bool:
        try:
            return self._reads.run(lambda: self._is_there(key, self._read_header(key)))
        except CorruptRecord:
            return if_corrupt

    def _look_at(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """`_holds` for each, by one read of all their beginnings."""
        tokens = max(len(key.token_ids) for key in keys)
        stop = _FIRST_BYTES // 16 + _HEADER_TOKEN_BYTES * tokens  # most headers are shorter
        beginnings = self._blobs.read_many([_name_of(key) for key in keys], stop)
        held: list[bool] = []
        for key, found in zip(keys, beginnings, strict=True):
            try:
                is_whole = found is None or said_length(found) <= len(found)
                header = found if is_whole else self._read_header(key)
                held.append(self._is_there(key, header and header[: said_length(header)]))
            except CorruptRecord:
                held.append(False)
        return held

    def _is_there(self, key: ChunkKey, encoded: bytes | None) -> bool:
        """Whether a header is that of the record. Raises `CorruptRecord`."""
        return encoded is not None and is_of(
            decode_header(encoded), key, self._fingerprint, self._codec
        )

    def _listed(self) -> list[tuple[bytes, int]]:
        def listed() -> list[tuple[bytes, int]]:
            sizes = self._blobs.sizes()
            named = ((_digest_of(name), size) for name, size in sizes)
            return [(digest, size) for digest, size in named if digest is not None]

        return self._writes.run(listed)  # it takes long, as writes do

    def _drop_corrupt(self, key: ChunkKey) -> None:
        try:
            self._writes.run(lambda: self._blobs.remove(_name_of(key)))
        except StoreError as error:
            # it stays, is found corrupt again by the next look-up, and is never served
            log.warning(
                "corrupt_record_stays", tier=self.name, key=key.hex[:12], reason=error.message
            )


def _name_of(key: ChunkKey) -> str:
    return key.hex


def _digest_of(name: str) -> bytes | None:
    """None: not the name of a record."""
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_BYTES else None
