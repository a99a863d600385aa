"""Tiers on other machines: a server that speaks RESP (Valkey, Redis), and object stores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from chunkcache.store.record import VERSION
from chunkcache.store.remote.objects import ObjectBlobs
from chunkcache.store.remote.resp import RespBlobs
from chunkcache.store.remote.tier import RemoteTier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.chunk import KVGeometry
    from chunkcache.config import StoreSettings
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.remote.base import Blobs


def remote_tiers(
    store: StoreSettings, codec: Codec, *, fingerprint: bytes, geometry: KVGeometry | None
) -> list[RemoteTier]:
    """Those that the settings name, from fast to slow, opened side by side. No connection yet.

    Format and codec are part of every name: installations of different versions, or with different
    codecs, use one server side by side.

    Raises:
        ConfigError: a package is missing, or an address is wrong.
    """
    coded = quote(codec.name, safe="")
    openers: dict[str, Callable[[], Blobs]] = {}
    if store.shared:
        prefix = f"chunkcache:{VERSION}:{coded}:"
        openers["shared"] = partial(
            RespBlobs, store.shared, prefix, timeout_s=store.remote_timeout_s
        )
    if store.object:
        openers["object"] = partial(ObjectBlobs, store.object, f"{VERSION}/{coded}")
    return [
        RemoteTier(
            name, blobs, codec,
            fingerprint=fingerprint, geometry=geometry, timeout_s=store.remote_timeout_s,
        )
        for name, blobs in zip(openers, _opened(list(openers.values())), strict=True)
    ]  # fmt: skip


def _opened(openers: Sequence[Callable[[], Blobs]]) -> list[Blobs]:
    """What they open, in their order, after as long as the slowest takes: clients are large
    packages, and some look for credentials in the network.

    Raises:
        ConfigError: of the first that failed; what the others opened is closed.
    """
    if not openers:
        return []
    with ThreadPoolExecutor(len(openers), thread_name_prefix="chunkcache-open") as threads:
        opening = [threads.submit(opener) for opener in openers]
    failures = [failure for each in opening if (failure := each.exception()) is not None]
    if failures:
        for each in opening:
            if each.exception() is None:
                each.result().close()
        raise failures[0]
    return [each.result() for each in opening]
