"""RAGPulse (arXiv 2511.12979): a week of a campus RAG service, as its authors publish it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.json_lines import Line, json_lines
from chunkcache.evaluate.hitrate.trace import TracedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACE_FILE: Final = "0_trace.jsonl"

# parts of a prompt in its order: field of a request, file with the lengths, field of the id there
_PARTS: Final = (
    ("sys_prompt", "1_sys_prompt.jsonl", "sys_prompt_id"),
    ("passages_ids", "2_passages.jsonl", "passage_id"),
    ("history", "3_history.jsonl", "history_id"),
    ("web_search", "5_web_search.jsonl", "web_search_id"),
    ("user_input", "4_user_input.jsonl", "user_input_id"),
)
_PASSAGES: Final = "passages_ids"


def read_ragpulse(path: Path) -> Iterator[TracedRequest]:
    """Requests by time; the file is not in that order, so all of it is read first.

    Args:
        path: the folder of the six files, or `0_trace.jsonl` among them.

    Raises:
        InvalidRequest: a file or a field is missing, or an id has no length.
    """
    folder = path if path.is_dir() else path.parent
    lengths = _lengths(folder)
    requests = [_request(line, lengths) for line in json_lines(folder / TRACE_FILE)]
    yield from sorted(requests, key=lambda request: request.at_s)


def _lengths(folder: Path) -> dict[int, int]:
    lengths: dict[int, int] = {}
    for _, name, field in _PARTS:
        if not (folder / name).exists():
            raise InvalidRequest.of(
                "trace", name, f"beside {TRACE_FILE}", "the lengths of its ids are in there"
            )
        for line in json_lines(folder / name):
            lengths[line.integer(field)] = line.integer("token_length")
    return lengths


def _request(line: Line, lengths: dict[int, int]) -> TracedRequest:
    found = line.fields.get("hash_ids")
    if not isinstance(found, dict):
        line.fail("hash_ids", found, "an object with the ids of each part", "see RAGPulse")
    ids: list[int | str] = []
    tokens: list[int] = []
    flags: list[bool] = []
    for field, name, _ in _PARTS:
        for chunk in line.ids(f"hash_ids.{field}", found.get(field, [])):
            length = lengths.get(chunk) if isinstance(chunk, int) else None
            if length is None:
                line.fail(f"hash_ids.{field}", chunk, f"an id that {name} has", "is it complete?")
            if length:
                ids.append(chunk)
                tokens.append(length)
                flags.append(field == _PASSAGES)
    return TracedRequest(line.seconds("timestamp"), ids, tokens, flags)
