"""Uploaded files: bytes and a JSON sidecar each, under one folder per tenant.

The sidecar is written last and atomically; a file exists when its sidecar does. Sidecars also
record which vector stores a file is attached to, because OpenAI's clients look that up by file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chunkcache.errors import NotFound
from chunkcache.protocol import DocumentInfo

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)

Attributes = dict[str, str | float | bool]


class Attachment(BaseModel):
    """A file in a vector store: its document, or why it has none."""

    model_config = ConfigDict(frozen=True)

    created_at: float
    document: DocumentInfo | None = None
    error: str | None = None
    attributes: Attributes = Field(default_factory=dict)


class StoredFile(BaseModel):
    """An uploaded file. `attachments` is by vector store id, as they were when made."""

    model_config = ConfigDict(frozen=True)

    id: str
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at: float
    attachments: dict[str, Attachment] = Field(default_factory=dict)


class FileShelf:
    """All uploaded files. Thread-safe; sidecars are kept in memory and written through."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._tenants: dict[str, dict[str, StoredFile]] = {}

    def add(self, tenant: str, filename: str, data: bytes, *, purpose: str) -> StoredFile:
        """Keep a file. It is on disk, synced, when this returns."""
        file = StoredFile(
            id=f"file-{secrets.token_hex(12)}",
            filename=filename,
            purpose=purpose,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_at=time.time(),
        )
        with self._lock:
            known = self._files(tenant)
            self._folder(tenant).mkdir(parents=True, exist_ok=True)
            _write_atomically(self._data_path(tenant, file.id), data)
            self._save(tenant, file)
            known[file.id] = file
        return file

    def get(self, tenant: str, file_id: str) -> StoredFile:
        """One file. Raises NotFound."""
        with self._lock:
            file = self._files(tenant).get(file_id)
        if file is None:
            raise NotFound(f"No such file: '{file_id[:80]}'.", param="file_id")
        return file

    def name(self, tenant: str, file_id: str) -> str | None:
        """The name a file was uploaded under; None: there is no such file."""
        with self._lock:
            file = self._files(tenant).get(file_id)
        return file.filename if file else None

    def list(self, tenant: str) -> list[StoredFile]:
        """All files of a tenant, oldest first."""
        with self._lock:
            files = list(self._files(tenant).values())
        return sorted(files, key=lambda file: (file.created_at, file.id))

    def read(self, tenant: str, file_id: str) -> bytes:
        """The bytes of a file. Raises NotFound."""
        with self._lock:
            self.get(tenant, file_id)
            return self._data_path(tenant, file_id).read_bytes()

    def delete(self, tenant: str, file_id: str) -> StoredFile:
        """Forget a file; its documents are the caller's to remove. Raises NotFound."""
        with self._lock:
            file = self.get(tenant, file_id)
            self._sidecar_path(tenant, file_id).unlink(missing_ok=True)
            self._data_path(tenant, file_id).unlink(missing_ok=True)
            del self._files(tenant)[file_id]
        return file

    def attach(self, tenant: str, file_id: str, store_id: str, attachment: Attachment) -> None:
        """Record that a file is in a vector store, replacing an older record. Raises NotFound."""
        with self._lock:
            file = self.get(tenant, file_id)
            self._replace(tenant, file, {**file.attachments, store_id: attachment})

    def detach(self, tenant: str, file_id: str, store_id: str) -> None:
        """Drop that record, if there is one."""
        with self._lock:
            file = self._files(tenant).get(file_id)
            if file is None:
                return
            kept = {key: value for key, value in file.attachments.items() if key != store_id}
            if len(kept) < len(file.attachments):
                self._replace(tenant, file, kept)

    def attached(self, tenant: str, store_id: str) -> dict[str, Attachment]:
        """What was attached to a vector store, by file id, oldest attachment first.

        The catalog may have moved on since: see `attachments.attachments_of`.
        """
        found = [
            (file.id, file.attachments[store_id])
            for file in self.list(tenant)
            if store_id in file.attachments
        ]
        return dict(sorted(found, key=lambda pair: pair[1].created_at))

    def _replace(self, tenant: str, file: StoredFile, attachments: dict[str, Attachment]) -> None:
        changed = file.model_copy(update={"attachments": attachments})
        self._save(tenant, changed)
        self._files(tenant)[file.id] = changed

    def _save(self, tenant: str, file: StoredFile) -> None:
        _write_atomically(self._sidecar_path(tenant, file.id), file.model_dump_json().encode())

    def _files(self, tenant: str) -> dict[str, StoredFile]:
        """The tenant's files; read from disk the first time, sweeping what was half-written."""
        if tenant not in self._tenants:
            files: dict[str, StoredFile] = {}
            for path in sorted(self._folder(tenant).glob("*.json")):
                try:
                    file = StoredFile.model_validate_json(path.read_bytes())
                except ValidationError:
                    log.error("file_sidecar_unreadable", path=str(path))
                    continue
                files[file.id] = file
            for path in self._folder(tenant).glob("*.data"):
                if not path.with_suffix(".json").exists():
                    path.unlink()
            for path in self._folder(tenant).glob("*.partial"):
                path.unlink()
            self._tenants[tenant] = files
        return self._tenants[tenant]

    def _folder(self, tenant: str) -> Path:
        # A hash, because a tenant's name may hold any character a file name may not.
        return self._root / hashlib.sha256(tenant.encode()).hexdigest()[:32]

    def _data_path(self, tenant: str, file_id: str) -> Path:
        return self._folder(tenant) / f"{file_id}.data"

    def _sidecar_path(self, tenant: str, file_id: str) -> Path:
        return self._folder(tenant) / f"{file_id}.json"


def _write_atomically(path: Path, data: bytes) -> None:
    """Write, sync, rename: readers see the old content or the new, also after a crash."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
