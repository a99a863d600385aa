"""When and how records on disk that nobody reads are rewritten."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from chunkcache.codec_spec import is_lossless, parse_codec
from chunkcache.section import MIB, Section


def _canonical_or_none(text: str) -> str:
    return str(parse_codec(text)) if text else text


class ColdSettings(Section):
    """Background recompression of the disk tier: a part of the section `store`."""

    cold_codec: Annotated[str, AfterValidator(_canonical_or_none)] = Field(
        "",
        description="what records on disk that nobody wanted for a while are rewritten with, as "
        "store.codec is written; empty: they stay as they are. One that rounds makes them "
        "repaired, never exact; pinned ones stay as they are",
    )
    cold_after_s: float = Field(
        3600.0, ge=0, description="how long nobody must have wanted them, in this process"
    )
    cold_above: float = Field(
        0.5, ge=0, le=1,
        description="only while records take more of store.disk_capacity_bytes than this share",
    )  # fmt: skip
    cold_bytes_per_s: int = Field(
        8 * MIB, ge=1, description="of stored records that may be rewritten a second, on average"
    )


def why_not_beside(cold_codec: str, codec: str) -> str | None:
    """What is wrong with it where new records are coded by `codec`, in words."""
    if cold_codec == codec:
        return f"Must be another than store.cold_codec, which is {codec}"
    if cold_codec and not is_lossless(codec):
        return (
            f"Must round nothing, which {codec} does, where store.cold_codec is set: what was "
            "rounded is not rounded again"
        )
    return None
