"""libCacheSim's oracleGeneral: 24 bytes an access, little-endian and packed.

`time u32 ‖ object u64 ‖ bytes u32 ‖ next access i64`, the last as the number of the access (from 1)
that is the object's next, or 2⁶³ − 1 where there is none. libCacheSim is a tool to run beside ours
(its licence is the GPL); nothing here needs it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np

from chunkcache.durable import whole_file
from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.trace import TracedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace

RECORD: Final = np.dtype([("time", "<u4"), ("object", "<u8"), ("bytes", "<u4"), ("next", "<i8")])
_NEVER: Final = np.iinfo(np.int64).max
_U32: Final = 2**32 - 1
_BLOCK: Final = 65_536  # records read at a time


def read_oracle_general(path: Path, *, bytes_per_token: int = 1) -> Iterator[TracedRequest]:
    """Every record as a request of one passage.

    Raises:
        InvalidRequest: the length is no multiple of 24, time runs backwards, or a size is no
            multiple of `bytes_per_token`; names the record, from 0.
    """
    size = path.stat().st_size
    if size % RECORD.itemsize:
        raise InvalidRequest.of(
            f"{path.name}: length", size, f"a multiple of {RECORD.itemsize} bytes",
            "unpack it first if it is compressed",
        )  # fmt: skip
    number, last = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK * RECORD.itemsize):
            for time, chunk, size_bytes, _ in np.frombuffer(block, RECORD).tolist():
                tokens, rest = divmod(size_bytes, bytes_per_token)
                if rest or not tokens:
                    raise _wrong(
                        path, number, "bytes", size_bytes, f"a multiple of {bytes_per_token}"
                    )
                if time < last:
                    raise _wrong(path, number, "time", time, f"at least {last}, that of before")
                number, last = number + 1, time
                yield TracedRequest(float(time), (chunk,), (tokens,))


def _wrong(path: Path, number: int, field: str, got: int, limit: str) -> InvalidRequest:
    hint = "--bytes-per-token says what a token takes" if field == "bytes" else "sort it by time"
    return InvalidRequest.of(f"{path.name} record {number}: {field}", got, limit, hint)


def write_oracle_general(trace: Trace, path: Path, sizes: RecordSizes) -> int:
    """Write every passage as a record; times count from the first request.

    Args:
        sizes: an object takes what its tokens take, without pages.

    Returns:
        Accesses written. Memory: 24 bytes for each, because each says when the next one is.

    Raises:
        InvalidRequest: an object is larger than 4 GiB or a time later than 2³² seconds.
    """
    rows: list[tuple[int, int, int, int]] = []
    begin_s: float | None = None
    for request in trace:
        begin_s = request.at_s if begin_s is None else begin_s
        at = int(request.at_s - begin_s)
        for chunk, tokens in request.passages():
            size = tokens * sizes.bytes_per_token
            if size > _U32 or at > _U32:
                raise InvalidRequest.of(
                    "trace", size if size > _U32 else at, f"at most {_U32} bytes and seconds",
                    "fewer --bytes-per-token",
                )  # fmt: skip
            rows.append((at, object_number(chunk), size, _NEVER))
    records = np.array(rows, RECORD)
    upcoming: dict[int, int] = {}
    nexts = records["next"]
    for index in range(len(records) - 1, -1, -1):
        chunk = int(records["object"][index])
        nexts[index] = upcoming.get(chunk, _NEVER)
        upcoming[chunk] = index + 1
    with whole_file(path) as file:
        file.write(records.tobytes())
    return len(records)


def object_number(chunk: int | str) -> int:
    """A chunk's id in 64 bits: itself if it is such a number, else a digest of it."""
    if isinstance(chunk, int) and 0 <= chunk < 2**63:
        return chunk
    digest = hashlib.blake2b(str(chunk).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1 << 63
