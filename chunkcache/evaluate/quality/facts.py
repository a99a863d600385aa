"""What the results of an evaluation depend on, and what differs between two such lists."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chunkcache.service.calibration import CALIBRATION_VERSION
from chunkcache.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.evaluate.quality.arms import Arm
    from chunkcache.evaluate.quality.questions import Question
    from chunkcache.service import ChunkCache

Facts = dict[str, Any]

_LONGEST_SHOWN = 40  # characters; longer values, such as digests, only differ
_MOST_SHOWN = 4


def installation_facts(cache: ChunkCache) -> Facts:
    """Model and settings that answers from this cache depend on, as JSON has them."""
    runtime, settings = cache.runtime, cache.settings
    calibration = runtime.calibration
    return {
        "chunkcache": __version__,
        "repair rules": CALIBRATION_VERSION,
        "model": runtime.model.fingerprint.hex(),
        "dtype": runtime.model.geometry.dtype,
        "device": str(runtime.model.device),
        "reuse": runtime.reuses,
        "calibration": None if calibration is None else _digest(asdict(calibration)),
        "engine": settings.engine.model_dump(mode="json"),
        "prompt": settings.prompt.model_dump(mode="json"),
        "repair": settings.repair.model_dump(mode="json"),
        "retrieval": settings.retrieval.model_dump(mode="json", exclude={"max_file_bytes"}),
        "store": settings.store.model_dump(mode="json", include={"codec"}),
    }


def corpus_digest(cache: ChunkCache, tenant: str, collection: str) -> str:
    """Of all chunks of a collection, in whatever order they came. Cost: reads every chunk."""
    digests = sorted(
        _digest([chunk.chunk_id, chunk.lead, chunk.text, chunk.token_ids])
        for chunk in cache.catalog.chunks(tenant, collection)
    )
    return _digest(digests)


def question_digest(question: Question) -> str:
    """Of what is asked, what it is graded against, and the passages it brings."""
    contexts = question.contexts
    passages = None if contexts is None else [c.model_dump(mode="json") for c in contexts]
    return _digest([question.text, question.answers, passages])


def arm_names(arms: Sequence[Arm]) -> list[str]:
    """Names of arms without their order, which changes nothing."""
    return sorted(arm.name for arm in arms)


def mark_of(facts: Facts) -> str:
    """A short name for the facts: every line that was made under them bears it."""
    return _digest(facts)[:16]


def differences(before: Facts, now: Facts) -> str:
    """In words: `retrieval.top_k was 4, is 8; model differs`."""
    found = list(_differing("", before, now))
    more = len(found) - _MOST_SHOWN
    return "; ".join(found[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _differing(path: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*before, *now]))
        below = f"{path}." if path else ""
        return [
            words
            for name in names
            for words in _differing(f"{below}{name}", before.get(name), now.get(name))
        ]
    if before == now:
        return []
    shown = json.dumps(before, ensure_ascii=False), json.dumps(now, ensure_ascii=False)
    if max(map(len, shown)) > _LONGEST_SHOWN:
        return [f"{path} differs"]
    return [f"{path} was {shown[0]}, is {shown[1]}"]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
