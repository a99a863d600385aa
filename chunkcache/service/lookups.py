"""What the log of look-ups says of a prompt and of a model's records."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from chunkcache.chunk import pack_token_ids
from chunkcache.console.lookup_log import LoggedPart, RecordFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chunkcache.chunk import ChunkKey
    from chunkcache.engine.prompt import Prompt
    from chunkcache.service.runtime import Runtime

_SHOWN_DIGITS = 16  # 64 bits of a digest: two of a million chunks meet once in ten million logs


def logged_parts(prompt: Prompt, keys: Mapping[int, ChunkKey], salt: bytes) -> list[LoggedPart]:
    """Every span by a digest that nobody without the tenant's salt can make.

    Args:
        keys: of the spans that were looked up, by index.
    """
    parts = []
    for index, span in enumerate(prompt.spans):
        key = keys.get(index)
        if key is not None:
            parts.append(LoggedPart(key.hex[:_SHOWN_DIGITS], len(key.token_ids), True))
        elif len(span):
            packed = pack_token_ids(span.token_ids)
            digest = hashlib.blake2b(packed, key=salt, digest_size=_SHOWN_DIGITS // 2)
            parts.append(LoggedPart(digest.hexdigest(), len(span), False))
    return parts


def record_facts(runtime: Runtime) -> RecordFacts:
    """What a record of this model takes."""
    chunks, geometry = runtime.engine.chunks, runtime.model.geometry
    return RecordFacts(
        bytes_per_token=-(-chunks.page_bytes // chunks.page_tokens),
        disk_bytes_per_token=geometry.bytes_per_token,
        page_tokens=chunks.page_tokens,
        layers=geometry.num_layers,
    )
