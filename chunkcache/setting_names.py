"""Names of settings: what begins with `CHUNKCACHE_` and is none, and which name one is nearest to.

A misspelt variable would leave the default in force without a word, so every name is to be known.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

PREFIX = "CHUNKCACHE_"
OTHER_VARIABLES = frozenset(
    {
        "CHUNKCACHE_URL", "CHUNKCACHE_API_KEY",  # of clients and integrations
        "CHUNKCACHE_DATA", "CHUNKCACHE_TRACES",  # of benchmarks and evaluation
        "CHUNKCACHE_CLIENTS_URL", "CHUNKCACHE_CLIENTS_FOLDER",  # of tests
        "CHUNKCACHE_TEST_FUZZ", "CHUNKCACHE_TEST_KILLS", "CHUNKCACHE_TEST_SEED",
        "CHUNKCACHE_TEST_SIZE",
    }
)  # fmt: skip
"""What is read from the environment and is no setting."""

# Kubernetes tells every container of each service; the names of some begin as ours do.
_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_[A-Z]+_(PROTO|PORT|ADDR))$")
_SERVICE_URL = re.compile(r"_PORT(_\d+_[A-Z]+)?=(tcp|udp|sctp)://")


def unknown_variables(environment: Mapping[str, str], settings: type[BaseModel]) -> list[str]:
    """What to say of variables that begin with `CHUNKCACHE_`, in any case, and mean nothing."""
    known = OTHER_VARIABLES | {variable_of(name) for name in _names(settings)}
    return [
        f"{name}: there is no such setting. "
        f"Hint: {variable_of(nearest(name, settings))} is the nearest name there is."
        for name, value in sorted(environment.items())
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not _SERVICE.search(name.upper())
        and not _SERVICE_URL.search(f"{name.upper()}={value}")
    ]


def variable_of(name: str) -> str:
    """The variable of a setting: `CHUNKCACHE_STORE__CODEC` of `store.codec`."""
    return PREFIX + name.replace(".", "__").upper()


def nearest(name: str, settings: type[BaseModel]) -> str:
    """The setting that is spelt most like `name`, whether that says the section or not.

    Args:
        name: dotted, or of a variable.
    """
    said = name.upper().removeprefix(PREFIX).replace(".", "__")

    def likeness(setting: str) -> float:
        whole = setting.replace(".", "__").upper()
        spellings = (whole, whole.rpartition("__")[2])
        return max(SequenceMatcher(None, said, spelling).ratio() for spelling in spellings)

    return max(_names(settings), key=likeness)


def _names(settings: type[BaseModel]) -> list[str]:
    """All settings, dotted, and the sections they are in."""
    sections = {name: field.annotation for name, field in settings.model_fields.items()}
    fields = {name: getattr(section, "model_fields", {}) for name, section in sections.items()}
    return [*sections, *(f"{name}.{field}" for name in fields for field in fields[name])]
