"""Strings in a server that speaks RESP: Valkey, Redis, and what behaves like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkcache.errors import ConfigError, CorruptRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOST_BYTES = 512 * 1024 * 1024  # of one string, in all these servers
_NAMES_AT_A_TIME = 500


class RespBlobs:
    """Strings under `prefix`. See `Blobs`. Connects with the first call.

    Args:
        url: redis://, rediss:// or unix://, valkey:// and valkeys:// as the first two; with user,
            password and number of the database where they are needed.
        prefix: of all names; contains no `*`, `?`, `[` or `\\`.
        timeout_s: for connecting, and for each packet.

    Raises:
        ConfigError: the package redis is missing, or the address is wrong.
    """

    most_bytes = _MOST_BYTES

    def __init__(self, url: str, prefix: str, *, timeout_s: float) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigError(
                "store.shared: needs the package redis, which is not installed. "
                "Hint: pip install 'chunkcache[redis]'"
            ) from error
        self._refusal: type[Exception] = redis.ResponseError
        self._prefix = prefix
        # a connection that a restarted server has closed is found out by its next use: tried again
        once_more = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        address = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            self._client: Any = redis.Redis.from_url(
                address, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
                retry=once_more, protocol=2,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"store.shared: {error}") from error

    def read(self, name: str, start: int, stop: int) -> bytes | None:
        """See `Blobs`. An empty string counts as none: that is how the server says it."""
        try:
            found: bytes = self._client.getrange(self._prefix + name, start, stop - 1)
        except self._refusal as error:
            if str(error).startswith("WRONGTYPE"):
                raise CorruptRecord(f"record {name}: its name holds no string") from error
            raise
        return found or None

    def read_many(self, names: Sequence[str], stop: int) -> list[bytes | None]:
        """See `Blobs`. One round trip."""
        batch = self._client.pipeline(transaction=False)
        for name in names:
            batch.getrange(self._prefix + name, 0, stop - 1)
        found: list[bytes | None] = []
        for answer in batch.execute(raise_on_error=False):
            is_refused = isinstance(answer, self._refusal)
            if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                raise answer
            found.append(b"" if is_refused else answer or None)
        return found

    def write(self, name: str, parts: Sequence[bytes]) -> None:
        """See `Blobs`."""
        self._client.set(self._prefix + name, b"".join(parts))

    def remove(self, name: str) -> None:
        """See `Blobs`."""
        self._client.delete(self._prefix + name)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """See `Blobs`. What comes or goes meanwhile may or may not be among them."""
        names: set[bytes] = set()  # the server may give one twice
        for name in self._client.scan_iter(match=self._prefix + "*", count=_NAMES_AT_A_TIME):
            names.add(name)
        listed = sorted(names)
        for first in range(0, len(listed), _NAMES_AT_A_TIME):
            batch = listed[first : first + _NAMES_AT_A_TIME]
            lengths = self._client.pipeline(transaction=False)
            for name in batch:
                lengths.strlen(name)
            answers = lengths.execute(raise_on_error=False)
            for name, length in zip(batch, answers, strict=True):
                if isinstance(length, int) and length:  # else gone meanwhile, or no string
                    yield name.decode("utf-8", "replace").removeprefix(self._prefix), length

    def close(self) -> None:
        """See `Blobs`."""
        self._client.close()
