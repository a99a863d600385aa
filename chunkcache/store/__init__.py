"""The store: tiers of chunk KV. `open_store` builds the one the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.store.check import CheckReport, check_store

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.config import Settings
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import Tier
    from chunkcache.store.tiered import TieredStore

__all__ = ["CheckReport", "check_store", "open_store", "store_path"]


def store_path(settings: Settings) -> Path:
    """The LMDB folder."""
    return settings.home / "kv"


def open_store(
    settings: Settings, fingerprint: bytes, metrics: Metrics, *, with_host: bool = True
) -> TieredStore:
    """Host tier over LMDB; no LMDB where `store.disk_capacity_bytes` is 0. Loads torch.

    Without a host tier the caller keeps chunks in memory by itself.

    Raises:
        StoreError: the LMDB environment cannot be opened.
        ConfigError: there is no such codec.
    """
    # here, because checking a store needs no torch
    from chunkcache.store.codec import codec_named
    from chunkcache.store.disk import DiskTier
    from chunkcache.store.host import HostTier
    from chunkcache.store.policy import WindowedFrequencyPolicy
    from chunkcache.store.tiered import TieredStore

    store = settings.store
    tiers: list[Tier] = []
    if with_host:
        evicted = metrics.evictions.labels("host").inc
        policy = WindowedFrequencyPolicy(store.host_capacity_bytes, quotas=store.quotas)
        tiers.append(HostTier(store.host_capacity_bytes, policy, on_evict=evicted))
    if store.disk_capacity_bytes:
        disk = DiskTier(
            store_path(settings), store.disk_capacity_bytes, codec_named(store.codec),
            fingerprint=fingerprint, sync_interval_s=store.sync_interval_s,
            policy=WindowedFrequencyPolicy(store.disk_capacity_bytes, quotas=store.quotas),
            on_evict=metrics.evictions.labels("disk").inc,
        )  # fmt: skip
        tiers.append(disk)
    return TieredStore(
        tiers, metrics,
        write_queue_limit=store.write_queue_limit, write_queue_bytes=store.write_queue_bytes,
    )  # fmt: skip
