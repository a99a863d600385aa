"""The sizing curve: what hit rate how many bytes would give, as the hit-rate tool found it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chunkcache.durable import whole_file
from chunkcache.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)

FILE_NAME: Final = "sizing.json"
_FILE_LIMIT_BYTES = 1 << 20


class SizingPoint(BaseModel):
    """One point of the curve."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    capacity_bytes: int = Field(ge=0)
    hit_rate: float = Field(ge=0.0, le=1.0, description="share of the passage tokens looked up")


class Sizing(BaseModel):
    """`sizing.json` in the home folder, written by whoever replays requests at several sizes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made_at: float = Field(description="seconds since the epoch")
    trace: str = Field(max_length=200, description="which requests were replayed, in words")
    points: list[SizingPoint] = Field(min_length=2, max_length=200, description="by capacity")


def write_sizing(home: Path, sizing: Sizing) -> Path:
    """Keep a curve for the page; whoever reads meanwhile sees the old one or the new one.

    Returns: the file.

    Raises:
        ConfigError: it cannot be written.
    """
    path = home / FILE_NAME
    try:
        with whole_file(path) as file:
            file.write(sizing.model_dump_json().encode())
    except StoreError as error:
        raise ConfigError(f"home: {error.message}") from error
    return path


def read_sizing(home: Path) -> Sizing | None:
    """The curve, or None where the tool has not run. A file that is none is logged and left out."""
    path = home / FILE_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(_FILE_LIMIT_BYTES)
        return Sizing.model_validate_json(data)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("sizing_unreadable", path=str(path), reason=str(error)[:200])
        return None
