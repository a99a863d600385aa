"""How long torch's threads spin for the next piece of work before they sleep.

GNU's OpenMP lets waiting threads spin for a millisecond and more. Where another process wants a
core, a spinning thread keeps it from the one that everybody waits for, and each of the thousands
of parallel operations of an answer costs a time slice (docs/log.md, 2026-11-28).
"""

from __future__ import annotations

import os
import sys

_SPINS = "10000"  # some tens of microseconds


def spin_briefly() -> None:
    """Set `GOMP_SPINCOUNT` unless it, or `OMP_WAIT_POLICY`, is set; OpenMP reads it once.

    Does nothing once torch is loaded: it would come too late, and only confuse children.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
