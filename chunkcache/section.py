"""What the sections of the settings are made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, field_validator

MIB = 1024 * 1024
GIB = 1024 * MIB


_MOST_WHOLE = (1 << 62) - 1  # what they are handed to counts in 64 bits, some of it with room
_MOST_S = 1e9  # thirty years; what waits is counted in nanoseconds


class Section(BaseModel):
    """Settings of one part; frozen, no other names than its own, and no numbers without end."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        most = {int: _MOST_WHOLE, float: _MOST_S}.get(type(value))
        if most is not None and value > most:
            raise ValueError(f"must be at most {most}")
        return value


def expanded(path: Path) -> Path:
    """The path with `~` replaced; unlike Path's own, silent about unknown users."""
    return Path(os.path.expanduser(path))


def named(path: Any) -> Any:
    """The path, if it is one: an empty variable would else name whatever folder one is in."""
    if path == "":
        raise ValueError("must not be empty; . is the folder one is in")
    return path


UserPath = Annotated[Path, BeforeValidator(named), AfterValidator(expanded)]
