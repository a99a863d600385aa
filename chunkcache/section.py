"""What the sections of the settings are made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

MIB = 1024 * 1024
GIB = 1024 * MIB


class Section(BaseModel):
    """Settings of one part; frozen, and no other names than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def expanded(path: Path) -> Path:
    """The path with `~` replaced; unlike Path's own, silent about unknown users."""
    return Path(os.path.expanduser(path))


UserPath = Annotated[Path, AfterValidator(expanded)]
