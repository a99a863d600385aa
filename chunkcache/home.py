"""What lies where in the home of an installation."""

from __future__ import annotations

from typing import Final

CATALOG_FILE: Final = "catalog.sqlite"
INDEX_FOLDER: Final = "indexes"
STORE_FOLDER: Final = "kv"
STORE_FILE: Final = "data.mdb"  # in that folder; the name is LMDB's
