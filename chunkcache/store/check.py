"""`chunkcache check`: does every entry have its bytes, and do all bytes have an entry?"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chunkcache.codec_spec import is_read
from chunkcache.errors import CorruptRecord, InvalidRequest
from chunkcache.home import STORE_FILE
from chunkcache.store.layout import MetaEntry, is_same_record, map_bytes_for
from chunkcache.store.lmdb_env import RecordEnv

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import lmdb

    from chunkcache.store.record import RecordHeader


@dataclass(slots=True)
class CheckReport:
    """What a check found. `records` = `ok` + `corrupt`; stale records are among the sound ones."""

    records: int = 0  # entries of `meta`
    ok: int = 0
    corrupt: int = 0
    orphans: int = 0  # digests with slabs and no entry
    stale: int = 0  # sound, but of another model, tokenizer, RoPE or lossy codec than was asked for
    models: int = 0  # different fingerprints among the sound ones
    removed: int = 0
    size_bytes: int = 0  # pages in use, after what was removed
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing was wrong (stale records are not wrong)."""
        return not self.problems


def check_store(
    path: Path,
    capacity_bytes: int,
    *,
    fingerprint: bytes | None = None,
    codecs: Collection[str] | None = None,
    fix: bool = False,
    drop_stale: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:
    """Verify every record of a store, from `meta` to the slabs and from the slabs to `meta`.

    Other processes may use the store meanwhile; this process must not have it open. A store that
    was never made is clean. Every record is verified in a read transaction of its own, so that a
    long check does not keep freed pages from reuse.

    Args:
        path: the LMDB folder.
        capacity_bytes: as configured; sizes the map.
        fingerprint: the current model's; records of others are stale.
        codecs: those in use; records of other lossy ones are stale.
        fix: remove what is wrong; a damaged file is set aside.
        drop_stale: remove what is stale.
        on_progress: told after each record how many have been verified, and of how many.

    Raises:
        InvalidRequest: `drop_stale` without saying what is current.
        StoreError: the environment cannot be opened, read or, to remove something, written; or its
            file is damaged, without `fix`.

    Cost: reads the whole store once.
    """
    if drop_stale and fingerprint is None and codecs is None:
        raise InvalidRequest.of(
            "drop_stale", drop_stale, "given with the current fingerprint or codec",
            "name the model whose records are to stay",
        )  # fmt: skip
    if not (path / STORE_FILE).exists():
        return CheckReport()
    with closing(RecordEnv(path, map_bytes_for(capacity_bytes), sets_aside=fix)) as env:
        check = _Check(env, fingerprint, codecs)
        if env.set_aside is not None:
            check.report.problems.append(f"{STORE_FILE} was damaged, it is now {env.set_aside}")
        check.run(on_progress)
        if fix:
            check.remove(check.wrong)
        if drop_stale:
            check.remove(check.stale)
        env.sync()
        return check.report


class _Check:
    """One run over an environment."""

    def __init__(
        self, env: RecordEnv, fingerprint: bytes | None, codecs: Collection[str] | None
    ) -> None:
        self._env = env
        self._fingerprint = fingerprint
        self._codecs = codecs
        self.report = CheckReport()
        self.wrong: dict[bytes, bytes | None] = {}  # digest → packed entry, if there is one
        self.stale: dict[bytes, bytes | None] = {}
        self._fingerprints: set[bytes] = set()

    def run(self, on_progress: Callable[[int, int], None]) -> None:
        with self._env.reading() as txn:
            listed = {digest for digest, _ in self._env.entries(txn)}
            orphans = sorted(self._env.slab_digests(txn) - listed)
            self.report.size_bytes = self._env.used_bytes(txn)
        for done, digest in enumerate(sorted(listed), start=1):
            self._check_record(digest)
            on_progress(done, len(listed))
        for digest in orphans:
            self.report.orphans += 1
            self._note(digest, None, "slabs without an entry")

    def remove(self, found: Mapping[bytes, bytes | None]) -> None:
        """Each record in a transaction of its own, so that a kill leaves no half.

        One that another process put in the place of one that was wrong stays.
        """
        for digest, packed in found.items():
            with self._env.writing() as txn:
                if is_same_record(self._env.entry(txn, digest), packed):
                    self._env.remove(txn, digest)
                    self.report.removed += 1
                self.report.size_bytes = self._env.used_bytes(txn)

    def _check_record(self, digest: bytes) -> None:
        with self._env.reading() as txn:
            packed = self._env.entry(txn, digest)
            if packed is None:
                return  # another process removed it since the list was made
            try:
                entry = self._verified(txn, digest, packed)
            except CorruptRecord as error:
                self.report.records += 1
                self.report.corrupt += 1
                self._note(digest, packed, error.message)
                return
        self.report.records += 1
        self.report.ok += 1
        self._fingerprints.add(entry.fingerprint)
        self.report.models = len(self._fingerprints)
        readable = self._codecs is None or is_read(entry.codec, self._codecs)
        if not readable or self._fingerprint not in (None, entry.fingerprint):
            self.report.stale += 1
            self.stale[digest] = packed

    def _verified(
        self, txn: lmdb.Transaction[memoryview], digest: bytes, packed: bytes
    ) -> MetaEntry:
        """The entry of a record all of whose bytes are right. Raises `CorruptRecord`."""
        entry = MetaEntry.unpack(packed)
        header = self._env.header(txn, digest)
        _check_agree(entry, header, self._env.record_bytes(txn, digest))
        for _ in self._env.slabs(txn, header):
            pass  # being yielded is being verified
        return entry

    def _note(self, digest: bytes, packed: bytes | None, problem: str) -> None:
        self.wrong[digest] = packed
        self.report.problems.append(f"{digest.hex()[:12]}: {problem}")


def _check_agree(entry: MetaEntry, header: RecordHeader, size_bytes: int) -> None:
    said = (entry.fingerprint, entry.codec, entry.num_tokens, entry.size_bytes)
    found = (header.fingerprint, header.codec, header.num_tokens, size_bytes)
    if said != found:
        raise CorruptRecord("the entry and the header contradict each other")
