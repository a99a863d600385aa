"""Amounts of bytes as people write and read them."""

from __future__ import annotations

import math
import re
from typing import Final

from chunkcache.errors import InvalidRequest

_UNITS: Final = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 1000), ("B", 1))
_FACTORS: Final = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[a-zA-Z]*)")
_MOST: Final = 2**62


def parse_bytes(field: str, text: str, whole_bytes: int) -> int:
    """`10%` of `whole_bytes`, `4GB`, `512MiB` or a number of bytes.

    Raises:
        InvalidRequest: it is none of these.

    >>> parse_bytes("--memory", "10%", 5000), parse_bytes("--memory", "1.5 kB", 0)
    (500, 1500)
    """
    match = _FORM.fullmatch(text.strip())
    amount = float(match[1]) if match else math.nan
    unit = match[2].lower() if match else ""
    factor = whole_bytes / 100 if unit == "%" else _FACTORS.get(unit, math.nan)
    if not amount * factor <= _MOST:
        raise InvalidRequest.of(
            field, text, "an amount such as 10%, 4GB, 512MiB or 4096",
            "percent are of the bytes of all distinct passages",
        )  # fmt: skip
    return int(amount * factor)


def shown_bytes(size_bytes: int) -> str:
    """With two significant digits, never less than it is.

    >>> shown_bytes(981), shown_bytes(3_140_000_000), shown_bytes(101_000_000_000)
    ('990 B', '3.2 GB', '110 GB')
    """
    quantum = 10 ** max(0, len(str(size_bytes)) - 2)
    rounded = -(-size_bytes // quantum) * quantum
    unit, scale = next((u for u in _UNITS if rounded >= u[1]), _UNITS[-1])
    amount = rounded / scale
    return f"{amount:.1f} {unit}" if amount < 10 and scale > 1 else f"{amount:.0f} {unit}"
