"""How the KV of a layer becomes bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.errors import ConfigError
from chunkcache.store.codec.raw import RawCodec

if TYPE_CHECKING:
    from chunkcache.store.codec.base import Codec

CODEC_NAMES = ("raw",)


def codec_named(name: str) -> Codec:
    """The codec with that name.

    Raises:
        ConfigError: there is none.
    """
    if name == RawCodec.name:
        return RawCodec()
    raise ConfigError(f"store.codec: got {name!r}, must be one of {', '.join(CODEC_NAMES)}.")
