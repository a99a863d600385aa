"""Where an installation's catalog is, and how long it keeps what. Loads no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.home import CATALOG_FILE
from chunkcache.retrieval.catalog import Catalog

if TYPE_CHECKING:
    from chunkcache.config import Settings
    from chunkcache.retrieval.damage import Damage


def open_catalog(settings: Settings, damage: Damage | None = None) -> Catalog:
    """The catalog of an installation. Needs no model and no embedder.

    Args:
        damage: see `Catalog`.

    Raises:
        StoreError: see `Catalog`.
    """
    path = settings.home / CATALOG_FILE
    return Catalog(path, keep_former_s=settings.server.link_lifetime_s, damage=damage)
