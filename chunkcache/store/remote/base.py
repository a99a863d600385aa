"""What a remote tier is made on: named strings of bytes, written whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Blobs(Protocol):
    """Strings of bytes under names, on another machine. Thread-safe.

    Any verb may raise whatever its client raises, and may hang: `Guard` bounds the time and turns
    what is raised into `StoreError`. What it gives is not trusted.
    """

    most_bytes: int  # no string may be longer

    def read(self, name: str, start: int, stop: int) -> bytes | None:
        """Bytes `start` up to `stop`, fewer where the string ends; None: there is no such name.

        At most `stop - start` bytes are taken from the network.

        Raises:
            CorruptRecord: what is under the name is no string of bytes.
        """
        ...

    def read_many(self, names: Sequence[str], stop: int) -> list[bytes | None]:
        """`read` from 0 up to `stop` for each name, in as few round trips as can be.

        Of a name under which no string of bytes is, an empty one: what is there is no record.
        """
        ...

    def write(self, name: str, parts: Sequence[bytes]) -> None:
        """Put the parts, joined, under a name; whole or not at all. Replaces what was there."""
        ...

    def remove(self, name: str) -> None:
        """Forget a name; nothing where there is none."""
        ...

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Names and lengths in bytes. Cost: a listing of all of them."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...
