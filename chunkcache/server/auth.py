"""API keys: a file of `key tenant` lines decides who a request is from.

The tenant, and from it the salt of every cache key, follows from the API key alone; nothing in a
request can choose it, because a salt the client names is no boundary.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from chunkcache.errors import ConfigError, InvalidRequest, Unauthorized

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)

PUBLIC_TENANT = "public"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Digests of the known keys and their tenants; None: no key is asked for."""

    entries: tuple[tuple[bytes, str], ...] | None = None

    @classmethod
    def load(cls, path: Path | None) -> ApiKeys:
        """Read a key file; `None` means one open tenant, `public`.

        Lines are `key tenant`; blank lines and lines opening with `#` are skipped. Several keys
        may name one tenant. A file that others on the machine can read is warned about.

        Raises:
            ConfigError: the file is unreadable, has no key, repeats one, or has a malformed line
                (named by number; a key is never part of a message).
        """
        if path is None:
            return cls(None)
        try:
            text = path.read_text(encoding="utf-8")
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"server.api_keys_file: cannot read {path}: {error}") from error
        if mode & stat.S_IROTH:
            log.warning("api_keys_file_world_readable", path=str(path), hint=f"chmod 600 {path}")
        entries: dict[bytes, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2:
                raise ConfigError(f"server.api_keys_file: {path} line {number}: want `key tenant`")
            if not words[0].isascii():  # HTTP headers carry ASCII
                raise ConfigError(f"server.api_keys_file: {path} line {number}: a key not in ASCII")
            digest = _digest(words[0])
            if digest in entries:
                raise ConfigError(f"server.api_keys_file: {path} line {number}: a repeated key")
            entries[digest] = words[1]
        if not entries:
            raise ConfigError(f"server.api_keys_file: {path} has no key; every request would fail")
        return cls(tuple(entries.items()))

    def check_tenant(self, tenant: str, *, field: str) -> None:
        """Raises InvalidRequest: keys are asked for, and none is this tenant's."""
        if self.entries is not None and tenant not in {name for _, name in self.entries}:
            raise InvalidRequest.of(
                field, tenant, "a tenant of server.api_keys_file", "look how it is written there"
            )

    def tenant_of(self, authorization: str | None) -> str:
        """The tenant of an `Authorization: Bearer KEY` header value.

        Every known key is compared in constant time, so that timing tells nothing about them.

        Raises:
            Unauthorized: keys are asked for, and this is none of them.
        """
        if self.entries is None:
            return PUBLIC_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("Missing API key: send the header `Authorization: Bearer KEY`.")
        given, found = _digest(key.strip()), None
        for digest, tenant in self.entries:
            if hmac.compare_digest(digest, given):
                found = tenant
        if found is None:
            raise Unauthorized("Incorrect API key provided.")
        return found
