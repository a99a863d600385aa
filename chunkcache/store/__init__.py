"""The store: tiers of chunk KV. `open_store` builds the one the settings ask for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from chunkcache.codec_spec import lossy_places
from chunkcache.home import STORE_FOLDER
from chunkcache.store.check import CheckReport, check_store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chunkcache.chunk import KVGeometry
    from chunkcache.cold_settings import ColdSettings
    from chunkcache.config import Settings
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import Tier
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.disk import DiskTier
    from chunkcache.store.popularity import Popularity
    from chunkcache.store.recompress import Recompressor
    from chunkcache.store.remote.breaker import Breaker
    from chunkcache.store.tiered import TieredStore
    from chunkcache_kernels.slabs import SlabReader

log = structlog.get_logger(__name__)

__all__ = ["CheckReport", "bases_path", "check_store", "open_store", "slab_reader", "store_path"]


def store_path(settings: Settings) -> Path:
    """The LMDB folder."""
    return settings.home / STORE_FOLDER


def bases_path(settings: Settings) -> Path:
    """The folder of fitted bases (codec `basis`)."""
    return settings.home / "bases"


def open_store(
    settings: Settings, fingerprint: bytes, metrics: Metrics, *, with_host: bool = True,
    popularity: Popularity | None = None, geometry: KVGeometry | None = None,
    quotas: Mapping[str, int] | None = None, recompresses: bool = False,
    reader: SlabReader | None = None,
) -> TieredStore:  # fmt: skip
    """The tiers that the settings ask for, from fast to slow. Loads torch.

    Memory, unless the caller keeps chunks in memory by itself (`with_host`); LMDB, unless
    `store.disk_capacity_bytes` is 0; a shared server and an object store, where there is one.

    Args:
        popularity: of who counts uses above these tiers: what is used there must not look unused
            on disk.
        geometry: of the model; records that say they are of another one are corrupt, a basis of
            another model is refused.
        quotas: bytes that tenants may hold in each tier; None: as the settings say.
        recompresses: it rewrites cold records, if set to: who serves, and knows what is in use.
        reader: see `DiskTier`.

    Raises:
        StoreError: the LMDB environment cannot be opened.
        ConfigError: there is no such codec, its basis is of another model, or a remote tier's
            package or address is wrong.
    """
    # here, because checking a store needs no torch
    from chunkcache.store.codec import codec_named
    from chunkcache.store.disk import DiskTier
    from chunkcache.store.host import HostTier
    from chunkcache.store.popularity import Popularity
    from chunkcache.store.remote import remote_tiers
    from chunkcache.store.tiered import TieredStore
    from chunkcache.store.windowed import WindowedFrequencyPolicy

    store, bases = settings.store, bases_path(settings)
    named = partial(codec_named, bases=bases, cache=settings.cache, geometry=geometry)
    codec, cold = named(store.codec), named(store.cold_codec) if store.cold_codec else None
    # before LMDB is opened: a wrong address must leave nothing open
    remote = remote_tiers(store, codec, fingerprint=fingerprint, geometry=geometry)
    counts_uses = popularity is None  # the first tier here does, if nobody above
    popularity = popularity or Popularity(also=partial(lossy_places, codecs=store.codecs))
    limits = store.quotas if quotas is None else quotas
    policy_of = partial(WindowedFrequencyPolicy, popularity=popularity, quotas=limits)
    tiers: list[Tier] = []
    jobs: list[Recompressor] = []
    if with_host:
        evicted = metrics.evictions.labels("host").inc
        policy = policy_of(store.host_capacity_bytes, counts_uses=counts_uses)
        counts_uses = False
        host_bytes = store.host_capacity_bytes
        tiers.append(HostTier(host_bytes, policy, on_evict=evicted, geometry=geometry))
    if store.disk_capacity_bytes:
        disk = DiskTier(
            store_path(settings), store.disk_capacity_bytes, codec,
            fingerprint=fingerprint, geometry=geometry, cold=cold,
            sync_interval_s=store.sync_interval_s,
            policy=policy_of(store.disk_capacity_bytes, counts_uses=counts_uses),
            on_evict=metrics.evictions.labels("disk").inc, reader=reader,
        )  # fmt: skip
        tiers.append(disk)
        if cold is not None and recompresses:
            jobs.append(_recompressor(disk, cold, popularity, store, metrics))
    for tier in remote:
        for kind, breaker in tier.breakers.items():
            metrics.tier_rests.labels(tier.name, kind).set_function(partial(_state, breaker))
    return TieredStore(
        [*tiers, *remote], metrics,
        write_queue_limit=store.write_queue_limit, write_queue_bytes=store.write_queue_bytes,
        jobs=jobs,
    )  # fmt: skip


def _recompressor(
    disk: DiskTier, codec: Codec, popularity: Popularity, cold: ColdSettings, metrics: Metrics
) -> Recompressor:
    from chunkcache.store.recompress import Recompressor

    def note(saved_bytes: int) -> None:
        metrics.recompressed.labels(disk.name).inc()
        metrics.recompressed_saved_bytes.labels(disk.name).inc(saved_bytes)

    job = Recompressor(
        disk, codec, popularity, cold,
        on_recoded=note, on_error=metrics.store_errors.labels(disk.name, "recompress").inc,
    )  # fmt: skip
    job.start()
    return job


def slab_reader(cache: Path) -> SlabReader | None:
    """What reads layers in C; None where it cannot be had, and Python does its work."""
    from chunkcache_kernels.compiler import NoCompiler
    from chunkcache_kernels.slabs import SlabReader

    try:
        return SlabReader(cache)
    except NoCompiler as error:
        log.info("slabs_not_compiled", reason=str(error))
        return None


def _state(breaker: Breaker) -> float:
    return float(breaker.state)
