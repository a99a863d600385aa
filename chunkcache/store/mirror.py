"""What a process knows of `meta`: the records there are, in order of eviction. Pure.

Other processes write the same store. Commits are numbered, so a mirror that has seen every number
knows it is exact; one that missed some reads `meta` again before it names a victim.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from chunkcache.errors import CorruptRecord
from chunkcache.store.layout import MetaEntry
from chunkcache.store.policy import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chunkcache.store.policy import Policy, Refusal, Room


class Mirror:
    """Entries of `meta` and the policy that orders them. Thread-safe."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._changing: set[bytes] = (
            set()
        )  # records that this process is putting others in place of
        self._entries: dict[bytes, bytes] = {}  # digest → packed entry
        self._sizes: dict[bytes, int] = {}
        self._leases: Counter[bytes] = Counter()  # records that this process is reading
        self._leaving: set[bytes] = set()  # victims whose removal has not been committed
        self._commit = -1  # number of the last commit, when this mirror has seen all up to it

    def is_current(self, commit: int) -> bool:
        """Whether nothing was committed, up to `commit`, that this mirror does not know."""
        with self._lock:
            return self._commit == commit

    def replace(self, commit: int, entries: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        """Take over all of `meta` as of `commit`. O(records), cheap for those known already.

        Returns:
            Digests whose entry is damaged: their size is unknown, they cannot stay.
        """
        fresh = dict(entries)
        with self._lock:
            for digest in [d for d, packed in self._entries.items() if fresh.get(d) != packed]:
                self._forget(digest)
            came: list[tuple[int, bytes, MetaEntry]] = []
            damaged: list[bytes] = []
            for digest in fresh.keys() - self._entries.keys():
                try:
                    entry = MetaEntry.unpack(fresh[digest])
                except CorruptRecord:
                    damaged.append(digest)
                else:
                    came.append((entry.created_ns, digest, entry))
            came.sort(key=lambda new: new[:2])
            for _, digest, entry in came:  # oldest first, as if they came in just now
                self._add(digest, fresh[digest], entry)
            self._commit = commit
        return damaged

    def added(self, commit: int, digest: bytes, entry: MetaEntry) -> None:
        """This process put a record in commit number `commit`."""
        with self._lock:
            self._add(digest, entry.pack(), entry)
            self._follow(commit)

    def removed(self, commit: int, digests: Iterable[bytes] = ()) -> None:
        """This process removed records, or none, in commit number `commit`."""
        with self._lock:
            for digest in digests:
                self._forget(digest)
                self._leaving.discard(digest)
            self._follow(commit)

    def held_bytes(self) -> int:
        """Bytes of all records. O(records)."""
        with self._lock:
            return sum(self._sizes.values())

    def used(self, digest: bytes) -> None:
        """A record was wanted, whether it was there or not."""
        with self._lock:
            self._policy.on_use(digest)

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """See `Policy`."""
        with self._lock:
            self._policy.on_quota(tenant, limit_bytes)

    def on_wait(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""
        with self._lock:
            self._policy.on_wait(digests)

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""
        with self._lock:
            self._policy.on_wait_over(digests)

    def admit(
        self, digest: bytes, entry: MetaEntry, bytes_needed: int, at_most_bytes: int
    ) -> list[list[bytes]] | None:
        """Whom to evict so that a record may come in, worst first; None: it is not to.

        In batches of at most `at_most_bytes`, or of one record. They are leased to nobody from here
        on, until `removed` or, where it comes to nothing, `stay`.
        """
        with self._lock:
            self._policy.on_time(entry.created_ns / 1e9)
            victims = self._policy.admit(digest, _known_of(entry), bytes_needed, self._leases)
            if victims is None:
                return None
            batches: list[list[bytes]] = []
            room = 0
            for victim in victims:
                room -= self._sizes[victim]
                if room < 0:
                    batches.append([])
                    room = at_most_bytes - self._sizes[victim]
                batches[-1].append(victim)
            self._leaving = set(victims)
            return batches

    def why_not(self, digest: bytes, entry: MetaEntry) -> Refusal:
        """See `Policy`."""
        with self._lock:
            return self._policy.why_not(digest, _known_of(entry))

    def room_for(self, tenant: str, free_bytes: int) -> Room:
        """See `Policy`."""
        with self._lock:
            return self._policy.room_for(tenant, free_bytes)

    def may_pin(self, entry: MetaEntry, instead_of: Iterable[bytes], now_s: float) -> bool:
        """See `Policy`; as late as `now_s`."""
        with self._lock:
            self._policy.on_time(now_s)
            return self._policy.may_pin(entry.size_bytes, instead_of)

    def pins_beyond(self, now_s: float) -> list[bytes]:
        """See `Policy`; as late as `now_s`."""
        with self._lock:
            self._policy.on_time(now_s)
            return self._policy.pins_beyond()

    def lease(self, digest: bytes) -> bool:
        """A record is to be read: it is no victim until it is given back as often. False: it is
        one already. Waits while another record is put in its place, which takes a commit.
        """
        with self._settled:
            self._settled.wait_for(lambda: digest not in self._changing)
            if digest in self._leaving:
                return False
            self._leases[digest] += 1
            return True

    def lease_many(self, digests: Iterable[bytes]) -> Counter[bytes]:
        """`lease` for each, together. Returns: those that were leased, and how often."""
        wanted = Counter(digests)
        with self._settled:
            self._settled.wait_for(lambda: self._changing.isdisjoint(wanted))
            for digest in self._leaving.intersection(wanted):
                del wanted[digest]
            self._leases.update(wanted)
        return wanted

    def give_back(self, *digests: bytes) -> None:
        """Records are not read any more."""
        with self._lock:
            for digest in digests:
                self._leases[digest] -= 1
                if not self._leases[digest]:
                    del self._leases[digest]

    def change(self, digest: bytes, *, leases: int = 0) -> bool:
        """Another record is to be put in this one's place: until `settle` nobody leases it.

        False: others are reading it than the caller, who has so many leases.
        """
        with self._lock:
            if self._leases.get(digest, 0) > leases:
                return False
            self._changing.add(digest)
            return True

    def settle(self, digests: Iterable[bytes]) -> None:
        """It has been put there, or not."""
        with self._settled:
            self._changing.difference_update(digests)
            self._settled.notify_all()

    def recoded(self, commit: int, digest: bytes, to: bytes, entry: MetaEntry) -> None:
        """This process put a record in the place of one that says the same in commit `commit`."""
        with self._lock:
            if self._entries.pop(digest, None) is not None:
                del self._sizes[digest]
                self._policy.on_recode(digest, to, _known_of(entry))
                self._entries[to], self._sizes[to] = entry.pack(), entry.size_bytes
            else:
                self._add(to, entry.pack(), entry)
            self._follow(commit)

    def victims(self, bytes_needed: int, at_most_bytes: int) -> list[bytes]:
        """Digests to evict, worst first, to free `bytes_needed`, as far as `at_most_bytes` go.

        At least one, however large, unless there is no record that is not leased. They are leased
        to nobody from here on, until `removed` or, where it comes to nothing, `stay`.
        """
        with self._lock:
            chosen: list[bytes] = []
            total = 0
            for digest in self._policy.victims(bytes_needed, self._leases):
                total += self._sizes[digest]
                if chosen and total > at_most_bytes:
                    break
                chosen.append(digest)
            self._leaving = set(chosen)
            return chosen

    def stay(self) -> None:
        """The victims are where they were."""
        with self._lock:
            self._leaving.clear()

    def _add(self, digest: bytes, packed: bytes, entry: MetaEntry) -> None:
        self._entries[digest] = packed
        self._sizes[digest] = entry.size_bytes
        self._policy.on_put(digest, _known_of(entry))

    def _forget(self, digest: bytes) -> None:
        if self._entries.pop(digest, None) is not None:
            del self._sizes[digest]
            self._policy.on_delete(digest)

    def _follow(self, commit: int) -> None:
        if self._commit == commit - 1:
            self._commit = commit


def _known_of(entry: MetaEntry) -> Entry:
    """What a policy is to know of a record: a hit saves its tokens."""
    return Entry(entry.size_bytes, entry.num_tokens, entry.terms)
