"""Tiers on other machines: a server that speaks RESP (Valkey, Redis), and object stores."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from chunkcache.store.record import VERSION
from chunkcache.store.remote.objects import ObjectBlobs
from chunkcache.store.remote.resp import RespBlobs
from chunkcache.store.remote.tier import RemoteTier

if TYPE_CHECKING:
    from chunkcache.chunk import KVGeometry
    from chunkcache.config import StoreSettings
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.remote.base import Blobs


def remote_tiers(
    store: StoreSettings, codec: Codec, *, fingerprint: bytes, geometry: KVGeometry | None
) -> list[RemoteTier]:
    """Those that the settings name, from fast to slow. Connects to nothing yet.

    Format and codec are part of every name: installations of different versions, or with different
    codecs, use one server side by side.

    Raises:
        ConfigError: a package is missing, or an address is wrong.
    """
    coded = quote(codec.name, safe="")
    named: list[tuple[str, Blobs]] = []
    if store.shared:
        prefix = f"chunkcache:{VERSION}:{coded}:"
        named.append(("shared", RespBlobs(store.shared, prefix, timeout_s=store.remote_timeout_s)))
    if store.object:
        named.append(("object", ObjectBlobs(store.object, f"{VERSION}/{coded}")))
    return [
        RemoteTier(
            name, blobs, codec,
            fingerprint=fingerprint, geometry=geometry, timeout_s=store.remote_timeout_s,
        )
        for name, blobs in named
    ]  # fmt: skip
