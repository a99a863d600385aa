"""Tenant salts: derived here from a secret of this installation, never taken from a request.

The salt goes into every chunk key and prefix chain, so tenants with the same text share no record,
no block and no timing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

from chunkcache.durable import sync_folder
from chunkcache.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.config import Settings

_SECRET_BYTES = 32


def load_secret(home: Path) -> bytes:
    """The installation's secret, made on first use with owner-only permissions.

    Raises:
        ConfigError: the file exists and is no secret of ours, or it can be neither read nor made.
    """
    path = home / "secret"
    try:
        secret = _secret_at(path)
    except OSError as error:
        raise ConfigError(
            f"home: cannot read or make {path}: {error.strerror}. Hint: --home names a folder that "
            "can be written"
        ) from error
    if len(secret) != _SECRET_BYTES:
        raise ConfigError(
            f"home: {path} has {len(secret)} bytes, must have {_SECRET_BYTES}. Hint: restore it, "
            "or remove it together with the store, whose records it can no longer find."
        )
    return secret


def _secret_at(path: Path) -> bytes:
    home = path.parent
    home.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        partial = home / f"secret.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_SECRET_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(partial, path)  # fails if another process was first; its secret wins
            sync_folder(home)  # without it no record is found any more
        except FileExistsError:
            return path.read_bytes()
        finally:
            partial.unlink()
    return path.read_bytes()


def shared_secret(text: str) -> bytes:
    """What tenants' keys are salted with where several installations share records."""
    return hashlib.blake2b(text.encode(), digest_size=_SECRET_BYTES, person=b"share/1").digest()


def salting_secret(settings: Settings) -> bytes:
    """What tenants' keys are salted with: the installation's own, or the one it shares.

    Raises:
        ConfigError: see `load_secret`.
    """
    shared = settings.store.share_secret
    return shared_secret(shared) if shared else load_secret(settings.home)


def tenant_salt(secret: bytes, tenant: str) -> bytes:
    """16 bytes that only who has the secret can derive for this tenant."""
    return hashlib.blake2b(tenant.encode(), key=secret, digest_size=16).digest()


def link_key(secret: bytes) -> bytes:
    """32 bytes to sign links to passages with; another function of the secret than the salts."""
    return hashlib.blake2b(b"passage links", key=secret, digest_size=32, person=b"links/1").digest()
