"""Writing into a store that has a byte budget and other writers: make room, publish, remove."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import StoreError
from chunkcache.store.index import entries_at
from chunkcache.store.layout import is_same_record
from chunkcache.store.lmdb_env import MapFull
from chunkcache.store.pins import Pins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import lmdb

    from chunkcache.store.layout import MetaEntry
    from chunkcache.store.lmdb_env import AnyTransaction, RecordEnv
    from chunkcache.store.mirror import Mirror
    from chunkcache.store.policy import Room

    Find = Callable[[AnyTransaction], tuple[bytes, str] | None]

log = structlog.get_logger(__name__)

_ATTEMPTS = 3  # at a full map; each after the first evicts more, to find runs of free pages
_RACES = 32  # rounds in which another process may take the room that was made
_DELETE_BATCH_BYTES = 32 * 1024 * 1024  # one transaction frees at most so much, or one record


class RecordWriter:
    """Keeps the records of an environment below `capacity_bytes`. Thread-safe.

    The budget is checked against the environment's own page count, inside the transaction that
    fills it: no process, however its commits interleave with others', puts the store over it.

    Args:
        on_evict: called with the number of records evicted.
    """

    def __init__(
        self,
        env: RecordEnv,
        mirror: Mirror,
        capacity_bytes: int,
        on_evict: Callable[[int], None],
    ) -> None:
        self._env = env
        self._mirror = mirror
        self._capacity_bytes = capacity_bytes
        self._pins = Pins(env, mirror, capacity_bytes)
        self._on_evict = on_evict
        self._lock = threading.Lock()  # held from making room until the record is in
        self._unsynced = threading.Event()
        self._eviction_helps = True  # against a full map
        self._said: set[str] = set()  # warned about once: the counters tell the rest

    def publish(
        self, digest: bytes, entry: MetaEntry, header: bytes, slabs: Sequence[bytes],
        *, worse: Sequence[bytes] = (),
    ) -> bool:  # fmt: skip
        """Make room within the budget and write a record in one transaction.

        Args:
            worse: where copies of the same chunk may lie that say less. They leave in that
                transaction, and their terms go over to the record (`Terms.after`). One that is
                being read stays until its time comes, as the first to leave.

        Returns:
            Whether the policy let it in. If not, why is said once for each reason.

        Raises:
            StoreError: map or disk full, or another failure; nothing of the record is there.
        """
        size = entry.size_bytes
        room = self._capacity_bytes - size
        with self._lock:
            if worse:  # before room is made: they may be the ones that leave for it
                with self._env.reading() as txn:
                    entry = _after(entry, entries_at(self._env, txn, worse).values())
            if room < 0 or not self._make_way(digest, entry):
                self._warn_of_refusal(*self._mirror.why_not(digest, entry))
                return False
            map_full = 0
            for _ in range(_RACES):
                used = self._evict(room)
                try:
                    if self._put(digest, entry, header, slabs, worse):
                        self._eviction_helps = True
                        return True
                except MapFull:
                    # Free pages lie apart, or a reader that hangs keeps them from reuse. In the
                    # second case evicting is in vain, and is not tried again until a put succeeds.
                    map_full += 1
                    if not self._eviction_helps or map_full == _ATTEMPTS:
                        self._eviction_helps = False
                        raise
                    room = max(0, used - size * map_full)
        raise StoreError(
            f"store: other processes fill {self._env.path} faster than room can be made in it. "
            f"Limit: {self._capacity_bytes} bytes. Hint: raise store.disk_capacity_bytes"
        )

    def room_for(self, tenant: str) -> Room:
        """See `Foresees`. Raises `StoreError`: the environment cannot be read."""
        with self._lock, self._env.reading() as txn:
            if not self._mirror.is_current(txn.id()):
                self._mirror.replace(txn.id(), self._env.entries(txn))
            return self._mirror.room_for(tenant, self._capacity_bytes - self._env.used_bytes(txn))

    def retain(self, find: Find, terms: Terms, *, exactly: bool) -> Retention | None:
        """Put a record on firmer terms, or `exactly` on these.

        Args:
            find: what is found when it is called within the transaction.

        Returns: see `Retaining`.

        Raises:
            StoreError: it stays on those that it has.
        """
        with self._lock:
            with self._env.writing() as txn:
                found = find(txn)
                if found is None:
                    return None
                digest, _ = found
                entry = entries_at(self._env, txn, [digest])[digest]
                if not exactly and entry.terms.retention >= terms.retention:
                    return entry.terms.retention
                changed = self._pins.granted(txn, replace(entry, terms=terms), [digest])
                if changed != entry:
                    self._env.put_entry(txn, digest, changed)
                commit = txn.id()
            if changed != entry:
                self._added(commit, digest, changed)
            return changed.terms.retention

    def recode(
        self, digest: bytes, seen: bytes, to: bytes, entry: MetaEntry,
        header: bytes, slabs: Sequence[bytes],
    ) -> bool:  # fmt: skip
        """Put a record in the place of a larger one that says the same, in one transaction.

        Args:
            digest: of the one that leaves; the caller has a lease on it.
            seen: its packed entry.
            to: what the other is to lie under; may be the same.

        Returns:
            False: it is being read, or is not what it was; nothing was written.

        Raises:
            StoreError: map or disk full, or another failure; nothing was written.
        """
        with self._lock:
            if not self._mirror.change(digest, leases=1):
                return False
            changing = {digest, to}
            try:
                if to != digest and not self._mirror.change(to):
                    changing.discard(to)
                    return False
                with self._env.writing(entry.size_bytes) as txn:
                    if not self._env.remove_unchanged(txn, digest, seen):
                        return False
                    self._env.put(txn, to, entry, header, slabs)
                    commit = txn.id()
                self._mirror.recoded(commit, digest, to, entry)
            finally:
                self._mirror.settle(changing)
            self._unsynced.set()
            self._free_pages()
            return True

    def remove(self, digest: bytes) -> None:
        """Remove a record, or what is left of it. Raises `StoreError`."""
        with self._lock:
            with self._env.writing() as txn:
                self._env.remove(txn, digest)
                commit = txn.id()
            self._removed(commit, digest)

    def remove_same(self, digest: bytes, seen: bytes | None) -> None:
        """Remove a record found corrupt, unless another was put in its place since; one that has
        other terms by now is the same.

        Args:
            seen: its packed entry when it was found corrupt; None: it had none.

        Raises:
            StoreError: it stays.
        """
        with self._lock:
            with self._env.writing() as txn:
                if not is_same_record(self._env.entry(txn, digest), seen):
                    return
                self._env.remove(txn, digest)
                commit = txn.id()
            self._removed(commit, digest)

    def sync(self) -> None:
        """Flush to the device, if anything was written. Raises `StoreError`: try again later."""
        if not self._unsynced.is_set():
            return
        self._unsynced.clear()
        try:
            self._env.sync()
        except StoreError:
            self._unsynced.set()
            raise

    def _removed(self, commit: int, digest: bytes) -> None:
        self._mirror.removed(commit, [digest])
        self._unsynced.set()
        self._free_pages()

    def _put(
        self, digest: bytes, entry: MetaEntry, header: bytes, slabs: Sequence[bytes],
        worse: Sequence[bytes],
    ) -> bool:  # fmt: skip
        """One transaction. False: another process took the room."""
        unread = [place for place in worse if self._mirror.change(place)]
        read: dict[bytes, MetaEntry] = {}
        try:
            with self._env.writing(entry.size_bytes) as txn:
                if self._env.used_bytes(txn) + entry.size_bytes > self._capacity_bytes:
                    return False
                there = entries_at(self._env, txn, worse)
                entry = self._pins.granted(txn, _after(entry, there.values()), [digest, *worse])
                for place, former in there.items():
                    if place in unread:
                        self._env.remove(txn, place)
                    else:
                        read[place] = replace(former, terms=_first_to_leave(former.terms))
                        self._env.put_entry(txn, place, read[place])
                self._env.put(txn, digest, entry, header, slabs)
                commit = txn.id()
            self._mirror.removed(commit, there.keys() - read.keys())
            for place, former in read.items():
                self._mirror.added(commit, place, former)
        finally:
            self._mirror.settle(unread)
        self._added(commit, digest, entry)
        if len(read) < len(there):
            self._free_pages()
        return True

    def _added(self, commit: int, digest: bytes, entry: MetaEntry) -> None:
        self._mirror.added(commit, digest, entry)
        self._unsynced.set()

    def _warn_of_refusal(self, reason: str, knob: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning(
                "store_write_refused", path=str(self._env.path), reason=reason,
                effect="such records are not on disk, and computed again after a restart",
                knob=knob or "store.disk_capacity_bytes",
            )  # fmt: skip

    def _make_way(self, digest: bytes, entry: MetaEntry) -> bool:
        """Evict those whom the policy gives up for a record. False: it is not to come in.

        What other processes put meanwhile is evicted by `_evict`, whoever it is.
        """
        with self._env.reading() as txn:
            needed = self._env.used_bytes(txn) + entry.size_bytes - self._capacity_bytes
            damaged: list[bytes] = []
            if not self._mirror.is_current(txn.id()):
                damaged = self._mirror.replace(txn.id(), self._env.entries(txn))
        if self._pins.loosen():
            self._unsynced.set()
        batches = self._mirror.admit(digest, entry, needed, _DELETE_BATCH_BYTES)
        try:
            for batch in [damaged] * bool(damaged) + (batches or []):
                with self._env.writing() as txn:
                    for victim in batch:
                        self._env.remove(txn, victim)
                    commit = txn.id()
                self._mirror.removed(commit, batch)
                self._unsynced.set()
                self._on_evict(len(batch))
                self._free_pages()
        except BaseException:
            self._mirror.stay()
            raise
        # where no eviction would do, `_evict` says why
        return batches is not None or needed > self._mirror.held_bytes()

    def _evict(self, down_to_bytes: int) -> int:
        """Evict until no more than `down_to_bytes` are used. Returns: the bytes used then."""
        evicted = 0
        while True:
            try:
                with self._env.writing() as txn:
                    used, commit = self._env.used_bytes(txn), txn.id()
                    if used <= down_to_bytes:
                        break
                    victims = self._victims(txn, used - down_to_bytes)
                    for victim in victims:
                        self._env.remove(txn, victim)
            except BaseException:
                self._mirror.stay()
                raise
            self._mirror.removed(commit, victims)
            self._unsynced.set()
            self._on_evict(len(victims))
            evicted += len(victims)
        if evicted:
            self._free_pages()
        return used

    def _free_pages(self) -> None:
        """Let the next transaction use what was removed. Raises nothing: it may use new pages."""
        try:
            self._mirror.removed(self._env.tick())
        except StoreError as error:
            log.warning("store_pages_not_freed", reason=error.message)

    def _victims(self, txn: lmdb.Transaction[bytes], bytes_needed: int) -> list[bytes]:
        """Whom to evict in this transaction: damaged entries first, then as the policy says."""
        before = txn.id() - 1
        if not self._mirror.is_current(before):
            damaged = self._mirror.replace(before, self._env.entries(txn))
            if damaged:
                return damaged
        victims = self._mirror.victims(bytes_needed, _DELETE_BATCH_BYTES)
        if not victims:
            raise StoreError(
                f"store: {self._env.path} holds {bytes_needed} bytes too many, in no record but "
                "those pinned or being read. Hint: raise store.disk_capacity_bytes, "
                "or chunkcache check --fix"
            )
        return victims


def _after(entry: MetaEntry, former: Iterable[MetaEntry]) -> MetaEntry:
    """The entry of a record that takes their place, on what terms it is to be."""
    for one in former:
        entry = replace(entry, terms=entry.terms.after(one.terms, entry.created_ns / 1e9))
    return entry


def _first_to_leave(terms: Terms) -> Terms:
    """What has expired long ago leaves before all else."""
    return Terms(terms.tenant, retention=Retention.PASSING, expires_s=0.0)
