"""Which records a tier finds: those of lossless codecs, and of the lossy ones it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.codec_spec import is_read, lossy_places
from chunkcache.store.codec import codec_named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chunkcache.chunk import ChunkKey
    from chunkcache.store.codec.base import Codec


class ReadableCodecs:
    """The codecs whose records a tier reads, beside all lossless ones. Immutable."""

    def __init__(self, *codecs: Codec | None) -> None:
        self._by_name = {codec.name: codec for codec in codecs if codec is not None}

    def read(self, codec: str) -> bool:
        """Whether records of this one are."""
        return is_read(codec, self._by_name)

    def places(self, digest: bytes) -> tuple[bytes, ...]:
        """Digests that a chunk's record may lie under, the most exact one first."""
        return (digest, *lossy_places(digest, self._by_name))

    def looks(self, digest: bytes) -> tuple[bytes, ...]:
        """Where to look for it, one after the other: once more at the first place in the end, for
        an exact record may have come there, and the others left, between two looks."""
        places = self.places(digest)
        return (*places, *places[:1]) if len(places) > 1 else places

    def places_of(self, keys: Iterable[ChunkKey]) -> list[bytes]:
        """The same of several chunks."""
        return [place for key in keys for place in self.places(key.digest)]

    def named(self, name: str) -> Codec:
        """The codec that made a record that is read."""
        return self._by_name.get(name) or codec_named(name)
