"""Objects in whatever fsspec reaches: a folder, S3 and what speaks like it, GCS, Azure."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from chunkcache.errors import ConfigError
from chunkcache.store.base import NO_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class ObjectBlobs:
    """Objects below a folder of `url`. See `Blobs`. Connects with the first call.

    Args:
        url: file:///folder, s3://bucket/folder, and others that fsspec knows; credentials and
            endpoints come from where the store's own client finds them (for S3 AWS_* variables).
        folder: below that of the url; may have several parts.

    Raises:
        ConfigError: a package is missing, or fsspec does not know such an address.
    """

    most_bytes = NO_LIMIT

    def __init__(self, url: str, folder: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ConfigError(_missing("fsspec")) from error
        is_local = url.startswith(("file:", "local:"))
        options: dict[str, Any] = {"auto_mkdir": True} if is_local else {}
        try:
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise ConfigError(_missing(f"{url.split('://')[0]}:// addresses: {error}")) from error
        except ValueError as error:
            raise ConfigError(f"store.object: got {url!r}. {error}") from error
        self._is_local = is_local
        self._root = f"{root.rstrip('/')}/{folder}"

    def read(self, name: str, start: int, stop: int) -> bytes | None:
        """See `Blobs`."""
        try:
            found: bytes = self._files.cat_file(self._path(name), start=start, end=stop)
        except FileNotFoundError:
            return None
        except OSError as error:
            if _is_beyond(error):
                return b""
            raise
        return found

    def read_many(self, names: Sequence[str], stop: int) -> list[bytes | None]:
        """See `Blobs`. Together where the store's client can, else one after the other."""
        paths = [self._path(name) for name in names]
        answers = self._files.cat_ranges(
            paths, [0] * len(paths), [stop] * len(paths), on_error="return"
        )
        found: list[bytes | None] = []
        for answer in answers:
            if isinstance(answer, FileNotFoundError):
                found.append(None)
            elif isinstance(answer, Exception):
                if not _is_beyond(answer):
                    raise answer
                found.append(b"")
            else:
                found.append(answer)
        return found

    def write(self, name: str, parts: Sequence[bytes]) -> None:
        """See `Blobs`. Object stores show an object when it is whole; a file is renamed then."""
        path = self._path(name)
        if not self._is_local:
            self._files.pipe_file(path, b"".join(parts))
            return
        partial = f"{path}.{secrets.token_hex(4)}"
        try:
            self._files.pipe_file(partial, b"".join(parts))
            os.replace(partial, path)
        except BaseException:
            with suppress(FileNotFoundError):
                self._files.rm_file(partial)
            raise

    def remove(self, name: str) -> None:
        """See `Blobs`."""
        with suppress(FileNotFoundError):  # another process was faster
            self._files.rm_file(self._path(name))

    def sizes(self) -> Iterator[tuple[str, int]]:
        """See `Blobs`."""
        try:
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return  # nothing was written yet
        for path, details in found.items():
            yield path.rsplit("/", 1)[-1], int(details["size"])

    def close(self) -> None:
        """See `Blobs`. Connections are fsspec's, which may share them: they end with it."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name}"  # no folder of a hundred thousand files


def _is_beyond(error: Exception) -> bool:
    """Whether S3 says that nothing lies from the first byte on that was asked for."""
    is_invalid = isinstance(error, OSError) and error.errno == errno.EINVAL
    return is_invalid and "range" in str(error)


def _missing(what: str) -> str:
    return (
        f"store.object: {what} is needed and not installed. "
        "Hint: pip install 'chunkcache[object-store]' for folders and S3; for others the package "
        "that fsspec names"
    )
