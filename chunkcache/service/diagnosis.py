"""What an operator asks when something looks wrong: is the model right, is the store sound?"""

from __future__ import annotations

import platform
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from chunkcache.chunk import ChunkKey
from chunkcache.errors import CorruptRecord, NotFound, StoreError
from chunkcache.home import CATALOG_FILE
from chunkcache.retrieval.checksums import fill_checksums, find_without_checksum
from chunkcache.retrieval.database import Database
from chunkcache.retrieval.open_catalog import open_catalog
from chunkcache.store import CheckReport, bases_path, check_store, store_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.config import Settings
    from chunkcache.engine.gate import Verdict


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Facts to put into a bug report, and the gate's fresh verdict."""

    facts: dict[str, str]
    verdict: Verdict


def diagnose(settings: Settings) -> Diagnosis:
    """Load the model, run the gate now, and remember its verdict.

    Raises:
        ModelNotFound, UnsupportedModel: there is no model to judge.
    """
    import torch  # here, because the other function of this module needs no model

    from chunkcache.cores import count_cores
    from chunkcache.engine.gate import run_gate, store_verdict
    from chunkcache.engine.loading import load_model

    model = load_model(settings)
    verdict = run_gate(model)
    store_verdict(verdict, model, settings.cache)
    geometry = model.geometry
    facts = {
        "chunkcache": version("chunkcache"),
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "transformers": version("transformers"),
        "machine": f"{platform.machine()}, {count_cores()} cores",
        "device": str(model.device),
        "model": f"{model.name} ({model.hf.config.model_type}), {model.context_tokens} tokens",
        "dtype": geometry.dtype,
        "KV": f"{geometry.bytes_per_token} bytes a token",
        "fingerprint": model.fingerprint.hex()[:16],
        "home": str(settings.home),
    }
    return Diagnosis(facts | tiers_reached(settings, model.fingerprint), verdict)


def tiers_reached(settings: Settings, fingerprint: bytes) -> dict[str, str]:
    """Whether each remote tier answers, and how soon.

    Raises:
        ConfigError: a remote tier's package or address is wrong.
    """
    from chunkcache.store.codec import codec_named
    from chunkcache.store.remote import remote_tiers

    codec = codec_named(settings.store.codec, bases_path(settings), settings.cache)
    nobody = ChunkKey(bytes(32), (0,))
    facts = {}
    for tier in remote_tiers(settings.store, codec, fingerprint=fingerprint, geometry=None):
        began = time.perf_counter()
        try:
            tier.contains(nobody)
            took_ms = 1000 * (time.perf_counter() - began)
            facts[f"{tier.name} tier"] = f"answers, after {took_ms:.1f} ms"
        except StoreError as error:
            facts[f"{tier.name} tier"] = f"does not answer: {error.message}"
        finally:
            tier.close()
    return facts


@dataclass(frozen=True, slots=True)
class CatalogCheck:
    """Passages and texts that were read, and what is wrong with those that are damaged.

    `without_checksum`: passages and texts that an earlier version wrote, and which have none;
    `filled`: how many of these have one now.
    """

    passages: int
    documents: int
    damaged: list[str]
    without_checksum: int
    filled: int


def check_catalog(settings: Settings, *, fix: bool = False) -> CatalogCheck | None:
    """Hold every passage and text against its checksum; None: there is no catalog yet.

    Nothing is removed: documents are the user's. Cost: all of it is read.

    Args:
        fix: what has no checksum gets one, see `fill_checksums`.

    Raises:
        StoreError: the catalog cannot be read or, to fill in checksums, written.
    """
    path = settings.home / CATALOG_FILE
    if not path.exists():
        return None
    passages, documents, damage = 0, 0, list[CorruptRecord]()
    with closing(open_catalog(settings)) as catalog:
        for tenant, collection in catalog.entries.generations():
            with suppress(NotFound):  # deleted meanwhile
                passages += sum(1 for _ in catalog.chunks(tenant, collection, damage.append))
                for info in catalog.documents(tenant, collection):
                    documents += 1
                    stored = catalog.document(tenant, collection, info.document_id)
                    try:
                        if stored is not None:
                            stored.verify()
                    except CorruptRecord as error:
                        damage.append(error)
    with closing(Database(path)) as database:
        old = fill_checksums(database) if fix else find_without_checksum(database)
    damaged = [*(error.message for error in damage), *old.damaged]
    return CatalogCheck(passages, documents, damaged, old.rows, old.filled)


def check_records(
    settings: Settings, *, fix: bool, drop_stale: bool,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:  # fmt: skip
    """Verify the disk tier. Only to drop records of other models it must know the configured one.

    Raises:
        StoreError: the store cannot be opened.
        ModelNotFound: with `drop_stale`; without the model nobody can say what is stale.
    """
    fingerprint = None
    if drop_stale:
        from chunkcache.engine.loading import load_fingerprint  # loads torch and transformers

        fingerprint = load_fingerprint(settings)
    return check_store(
        store_path(settings),
        settings.store.disk_capacity_bytes,
        fingerprint=fingerprint,
        codecs=settings.store.codecs,
        fix=fix,
        drop_stale=drop_stale,
        on_progress=on_progress,
    )
