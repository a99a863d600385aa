"""Pins of one store: how much of it they may take, granted in the transaction that writes them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from chunkcache.chunk import Retention
from chunkcache.store.index import entries_at
from chunkcache.store.policy import PINNED_SHARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lmdb

    from chunkcache.store.layout import MetaEntry
    from chunkcache.store.lmdb_env import RecordEnv
    from chunkcache.store.mirror import Mirror

log = structlog.get_logger(__name__)


class Pins:
    """What is granted is written: it is decided once, for all processes and after a restart.

    To be used by one thread at a time, as the writer does.
    """

    def __init__(self, env: RecordEnv, mirror: Mirror, capacity_bytes: int) -> None:
        self._env = env
        self._mirror = mirror
        self._limit_bytes = int(capacity_bytes * PINNED_SHARE)
        self._is_said = False

    def granted(
        self, txn: lmdb.Transaction[bytes], entry: MetaEntry, instead_of: Sequence[bytes]
    ) -> MetaEntry:
        """The entry on the terms that it is to have: warmed where pins leave it no place.

        Args:
            txn: nothing has been changed in it yet.
            instead_of: digests of those that it takes the place of.
        """
        if entry.terms.retention is not Retention.PINNED:
            return entry
        self._catch_up(txn)
        if self._mirror.may_pin(entry, instead_of, time.time()):
            return entry
        self._warn()
        return _warmed(entry)

    def loosen(self) -> bool:
        """Those that fit no more are warmed from now on: the tier was larger once, or an earlier
        version wrote down what was asked for. Whether there were any.

        Raises:
            StoreError: they are pinned still.
        """
        if not self._mirror.pins_beyond(time.time()):
            return False
        with self._env.writing() as txn:
            self._catch_up(txn)
            there = entries_at(self._env, txn, self._mirror.pins_beyond(time.time()))
            loosened = {
                digest: _warmed(entry)
                for digest, entry in there.items()
                if entry.terms.retention is Retention.PINNED
            }
            for digest, entry in loosened.items():
                self._env.put_entry(txn, digest, entry)
            commit = txn.id()
        for digest, entry in loosened.items():
            self._mirror.added(commit, digest, entry)
        if loosened:
            self._warn()
        return bool(loosened)

    def _catch_up(self, txn: lmdb.Transaction[bytes]) -> None:
        """Others pin, too, and take it back: the mirror is exact until this transaction ends."""
        before = txn.id() - 1
        if not self._mirror.is_current(before):
            for damaged in self._mirror.replace(before, self._env.entries(txn)):
                self._env.remove(txn, damaged)

    def _warn(self) -> None:
        if not self._is_said:
            self._is_said = True
            log.warning(
                "pins_full", path=str(self._env.path), limit_bytes=self._limit_bytes,
                effect="what is pinned beyond that is kept as warmed",
                knob="store.disk_capacity_bytes",
            )  # fmt: skip


def _warmed(entry: MetaEntry) -> MetaEntry:
    return replace(entry, terms=replace(entry.terms, retention=Retention.WARMED))
