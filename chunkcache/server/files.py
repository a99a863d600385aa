"""Uploaded files: bytes and a JSON sidecar each, under one folder per tenant.

The sidecar is written last and atomically; a file exists when its sidecar does. Sidecars also
record which vector stores a file is attached to, because OpenAI's clients look that up by file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chunkcache.durable import sync_folder, write_durably
from chunkcache.errors import NotFound, StoreError
from chunkcache.protocol import DocumentInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger(__name__)

Attributes = dict[str, str | float | bool]
_Version = tuple[int, int, int]  # inode, date of change in ns, bytes
_FILE_ID = re.compile(r"file-[0-9a-f]{1,64}")


class Attachment(BaseModel):
    """A file in a vector store: its document, or why it has none."""

    model_config = ConfigDict(frozen=True)

    created_at: float
    document: DocumentInfo | None = None
    error: str | None = None
    attributes: Attributes = Field(default_factory=dict)
    batch: str | None = None  # id of the request that attached several


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
    """All uploaded files. Thread-safe, and several servers may share the folder.

    The disk is the truth: sidecars are kept in memory, and read again when they were replaced.
    Changes are made by one thread of one process at a time, per tenant. Each raises `StoreError`
    where the disk is full or cannot be written; what was there is as it was.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[Path, tuple[_Version, StoredFile | None]] = {}  # None: unreadable
        self._swept: set[str] = set()

    def add(self, tenant: str, filename: str, data: bytes, *, purpose: str) -> StoredFile:
        """Keep a file. It is on disk, synced, when this returns. Raises StoreError."""
        file = StoredFile(
            id=f"file-{secrets.token_hex(12)}",
            filename=filename,
            purpose=purpose,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_at=time.time(),
        )
        with self._explained():
            self._make_folder(tenant)
        with self._changing(tenant):
            try:
                write_durably(self._data_path(tenant, file.id), data)
                self._save(tenant, file)
            except OSError:  # bytes that nobody can name would keep a full disk full
                self._unlink(tenant, file.id)
                raise
        return file

    def get(self, tenant: str, file_id: str) -> StoredFile:
        """One file. Raises NotFound."""
        file = self._find(tenant, file_id)
        if file is None:
            raise _no_file(file_id)
        return file

    def name(self, tenant: str, file_id: str) -> str | None:
        """The name a file was uploaded under; None: there is no such file."""
        file = self._find(tenant, file_id)
        return file.filename if file else None

    def list(self, tenant: str) -> list[StoredFile]:
        """All files of a tenant, oldest first. Cost: a look at each sidecar's date."""
        self._sweep(tenant)
        paths = self._folder(tenant).glob("*.json")
        files = [file for path in paths if (file := self._sidecar(path)) is not None]
        return sorted(files, key=lambda file: (file.created_at, file.id))

    def read(self, tenant: str, file_id: str) -> bytes:
        """The bytes of a file. Raises NotFound; StoreError: they are not what was uploaded."""
        file = self.get(tenant, file_id)
        try:
            data = self._data_path(tenant, file_id).read_bytes()
        except FileNotFoundError as error:  # deleted since
            raise _no_file(file_id) from error
        except OSError as error:
            raise StoreError(f"files: cannot read {file_id}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise StoreError(
                f"files: {file_id} ({file.filename}) has other bytes on disk than were uploaded "
                f"({len(data)} of {file.size_bytes}). Hint: look at the disk, and upload it again"
            )
        return data

    def delete(self, tenant: str, file_id: str) -> StoredFile:
        """Forget a file; its documents are the caller's to remove. Raises NotFound."""
        self.get(tenant, file_id)
        with self._changing(tenant):
            file = self.get(tenant, file_id)
            self._unlink(tenant, file_id)
        self._read.pop(self._sidecar_path(tenant, file_id), None)
        return file

    def attach(self, tenant: str, file_id: str, store_id: str, attachment: Attachment) -> None:
        """Record that a file is in a vector store, replacing an older record. Raises NotFound."""
        self.get(tenant, file_id)
        with self._changing(tenant):
            file = self.get(tenant, file_id)
            self._replace(tenant, file, {**file.attachments, store_id: attachment})

    def detach(self, tenant: str, file_id: str, store_id: str) -> None:
        """Drop that record, if there is one."""
        if self._find(tenant, file_id) is None:
            return
        with self._changing(tenant):
            file = self._find(tenant, file_id)
            if file is not None and store_id in file.attachments:
                kept = {key: value for key, value in file.attachments.items() if key != store_id}
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
        self._save(tenant, file.model_copy(update={"attachments": attachments}))

    def _save(self, tenant: str, file: StoredFile) -> None:
        write_durably(self._sidecar_path(tenant, file.id), file.model_dump_json().encode())

    def _unlink(self, tenant: str, file_id: str) -> None:
        self._sidecar_path(tenant, file_id).unlink(missing_ok=True)
        self._data_path(tenant, file_id).unlink(missing_ok=True)

    def _find(self, tenant: str, file_id: str) -> StoredFile | None:
        if not _FILE_ID.fullmatch(file_id):  # it would be a path to somewhere else
            return None
        return self._sidecar(self._sidecar_path(tenant, file_id))

    def _sidecar(self, path: Path) -> StoredFile | None:
        try:
            version = _version(path)
            known = self._read.get(path)
            if known is not None and known[0] == version:
                return known[1]
            file = StoredFile.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            self._read.pop(path, None)  # deleted by another server, perhaps
            return None
        except ValidationError:
            log.error("file_sidecar_unreadable", path=str(path))
            file = None
        self._read[path] = (version, file)
        return file

    @contextmanager
    def _changing(self, tenant: str) -> Iterator[None]:
        """Alone among all who change the tenant's files. Not reentrant."""
        with self._explained():
            folder = os.open(self._folder(tenant), os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                yield
            finally:
                os.close(folder)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"files: cannot write below {self._root}: {error.strerror}. Hint: check free space "
                "and permissions; what was uploaded before is as it was"
            ) from error

    def _sweep(self, tenant: str) -> None:
        """Remove, once per process, what others left half-written when they were killed."""
        if tenant in self._swept or not self._folder(tenant).is_dir():
            return
        with self._changing(tenant):  # nobody is in the middle of writing
            for path in self._folder(tenant).glob("*.data"):
                if not path.with_suffix(".json").exists():
                    path.unlink()
            for path in self._folder(tenant).glob("*.partial"):
                path.unlink()
        self._swept.add(tenant)

    def _make_folder(self, tenant: str) -> None:
        self._folder(tenant).mkdir(parents=True, exist_ok=True)
        sync_folder(self._root)  # a folder that is lost takes its files along
        sync_folder(self._root.parent)

    def _folder(self, tenant: str) -> Path:
        # A hash, because a tenant's name may hold any character a file name may not.
        return self._root / hashlib.sha256(tenant.encode()).hexdigest()[:32]

    def _data_path(self, tenant: str, file_id: str) -> Path:
        return self._folder(tenant) / f"{file_id}.data"

    def _sidecar_path(self, tenant: str, file_id: str) -> Path:
        return self._folder(tenant) / f"{file_id}.json"


def _version(path: Path) -> _Version:
    """What changes whenever a file is replaced by another."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"No such file: '{file_id[:80]}'.", param="file_id")
