"""Where the loops over codes come from that are compiled for this machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import structlog
from platformdirs import user_cache_dir

from chunkcache_kernels.codes import Codes
from chunkcache_kernels.compiler import NoCompiler

log = structlog.get_logger(__name__)


def open_codes(folder: Path | None) -> Codes | None:
    """The loops, kept in `folder`, or else in the user's cache directory; None: torch does it all.

    Takes some seconds the first time on a machine.
    """
    return _opened(folder or Path(user_cache_dir("chunkcache", appauthor=False)))


@cache  # a library is opened once, and what is missing is said once
def _opened(folder: Path) -> Codes | None:
    try:
        return Codes(folder)
    except NoCompiler as error:
        log.warning("codecs_not_compiled", reason=str(error))
        return None
