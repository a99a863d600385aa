"""Throughput of the tiers: put and get, from memory, from a warm page cache, and from the disk.

    python benchmarks/bench_store.py [--out benchmarks/results/bench_store.jsonl]

Records have the geometry of SmolLM2-135M (30 layers, 3 KV heads of 64, bf16: 23,040 bytes a token).
Prints a table of medians, then one JSON line. First the disk tier is held to its slow twin, the
host tier, bit for bit; nothing is measured when they differ. The yardstick of a get is one copy and
one checksum of the same bytes, which is all that it should cost. `disk layers` reads as the loader
does, some layers at a time in two threads into memory that is used again; its yardstick is the best
plain read of as many bytes of the same file. `to pages` brings as many layers at a time
from memory to where they can be attended; its yardstick is one copy of the same bytes.

`cold` closes the store, flushes it, and drops its file from the page cache (posix_fadvise,
DONTNEED). What the machine below caches, if this is a virtual one, cannot be dropped; `device` is
the share of the bytes that the kernel really had to fetch (Linux, /proc/self/io).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import numpy as np
import torch
import xxhash
from reporting import command_line, emit, surroundings

from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, KVGeometry
from chunkcache.config import load_settings
from chunkcache.engine.angles import RotaryAngles
from chunkcache.engine.chunk_pages import ChunkPages
from chunkcache.engine.loader import end_of_task
from chunkcache.store import slab_reader
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.leased import LeasedRecord
from chunkcache_kernels import Arena
from chunkcache_kernels.compiled import Team

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.store.base import RecordReader
    from chunkcache_kernels.slabs import SlabReader

GEOMETRY = KVGeometry(30, 3, 64, "bfloat16", "bench")
CHUNK_TOKENS = (128, 256, 512)
RUN_BYTES = 48 * 1024 * 1024  # KV of all records of one size
CAPACITY_BYTES = 1024**3
FINGERPRINT = b"bench"
BLOCK_BYTES = 4 << 20  # of a plain read
PAGE_TOKENS = 32
YARDSTICKS = {
    "disk layers, warm": "plain read, warm", "disk layers, cold": "plain read, cold",
    "to pages": "copy",
}  # fmt: skip

Samples = dict[tuple[int, str], list[float]]


def make_records(num_tokens: int, seed: int) -> list[ChunkKV]:
    """Records of random bits, together about `RUN_BYTES`."""
    draw = np.random.default_rng([seed, num_tokens])
    shape = (GEOMETRY.num_layers, 2, num_tokens, GEOMETRY.num_kv_heads, GEOMETRY.head_dim)
    made = []
    for number in range(RUN_BYTES // (num_tokens * GEOMETRY.bytes_per_token)):
        bits = torch.from_numpy(draw.integers(-(2**15), 2**15, shape, np.int16))
        ids = [number, *draw.integers(0, 49152, num_tokens - 1).tolist()]
        key = ChunkKey.of(ids, fingerprint=FINGERPRINT, born_prefix=(), salt=b"")
        mass = draw.random((2, num_tokens), np.float32)
        stats = ChunkStats(mass[0], mass[1], np.empty(0, np.float32), 0.5)
        made.append(ChunkKV(key, GEOMETRY, bits.view(torch.bfloat16), stats))
    return made


def open_disk(folder: Path) -> DiskTier:
    """The disk tier, without background flushes that would disturb the clock."""
    return DiskTier(
        folder, CAPACITY_BYTES, codec_named("raw"), fingerprint=FINGERPRINT, sync_interval_s=3600,
        reader=compiled_reader(),
    )  # fmt: skip


@cache
def compiled_reader() -> SlabReader | None:
    """What the service's disk tier reads with, too."""
    return slab_reader(load_settings().cache)


def differs_from_twin(records: list[ChunkKV], folder: Path) -> str | None:
    """What the disk tier gives back otherwise than the host tier, or None."""
    host, disk = HostTier(CAPACITY_BYTES), open_disk(folder)
    for record in records:
        host.put(record)
        disk.put(record)
    disk.close()
    disk = open_disk(folder)
    problem = None
    for record in records:
        found, twin = disk.get(record.key), host.get(record.key)
        if found is None or twin is None:
            problem = f"record {record.key.hex[:12]} is missing"
        elif not torch.equal(found.kv.view(torch.int16), twin.kv.view(torch.int16)):
            problem = f"record {record.key.hex[:12]} has other bits"
        elif found.stats.token_inter.tobytes() != twin.stats.token_inter.tobytes():
            problem = f"record {record.key.hex[:12]} has other statistics"
    disk.close()
    shutil.rmtree(folder)
    return problem


def copy_and_checksum(record: ChunkKV) -> torch.Tensor:
    """The yardstick: each layer checksummed and copied into a fresh tensor."""
    out = torch.empty_like(record.kv)
    layers = record.kv.view(torch.uint8).numpy().reshape(GEOMETRY.num_layers, -1)
    into = out.view(torch.uint8).numpy().reshape(GEOMETRY.num_layers, -1)
    for layer, source in enumerate(layers):
        xxhash.xxh3_128_digest(source.data)
        into[layer] = source
    return out


def get_one(tier: HostTier | DiskTier, record: ChunkKV) -> torch.Tensor:
    """Load a record."""
    found = tier.get(record.key)
    if found is None:
        raise LookupError(f"record {record.key.hex[:12]} is gone")
    return found.kv


def get_all(tier: HostTier | DiskTier, records: list[ChunkKV]) -> None:
    """Load every record."""
    for record in records:
        get_one(tier, record)


def put_all(tier: HostTier | DiskTier, records: list[ChunkKV]) -> None:
    """Store every record."""
    for record in records:
        tier.put(record)


def tasks_of(record: ChunkKV) -> list[tuple[int, int]]:
    """The layers that a loader's thread brings up at a time: first, and the one behind the last."""
    layers, tasks = GEOMETRY.num_layers, [(0, 0)]
    while (first := tasks[-1][1]) < layers:
        tasks.append((first, end_of_task(first, record.size_bytes // layers, layers)))
    return tasks[1:]


def read_layers(tier: DiskTier, records: Sequence[ChunkKV]) -> None:
    """Read every record as a loader's thread does, after they were opened together."""
    out = torch.empty_like(records[0].kv)
    with ExitStack() as leases:
        for record, reader in zip(records, open_together(tier, records), strict=True):
            leases.enter_context(reader)
            for first, last in tasks_of(record):
                reader.read_layers(first, last, out[: last - first])


def open_together(tier: DiskTier, records: Sequence[ChunkKV]) -> list[RecordReader]:
    """Leases as the service takes those of a prompt."""
    opened = tier.open_many([record.key for record in records])
    readers = [reader for reader in opened if isinstance(reader, LeasedRecord)]
    if len(readers) < len(records):
        raise LookupError("a record has gone")
    return [*readers]


def read_plainly(file: Path, thread: int, threads: int) -> None:
    """Read as many bytes as the records have, block by block, in turns with other threads."""
    into = bytearray(BLOCK_BYTES)
    with file.open("rb", buffering=0) as opened:
        for at in range(thread * BLOCK_BYTES, RUN_BYTES, threads * BLOCK_BYTES):
            os.preadv(opened.fileno(), [into], at)


def together(actions: Sequence[Callable[[], None]]) -> None:
    """Run all of them at once."""
    with ThreadPoolExecutor(len(actions)) as executor:
        for done in [executor.submit(action) for action in actions]:
            done.result()


def measure_reads(records: list[ChunkKV], folder: Path) -> dict[str, float]:
    """Seconds of layers from the disk tier, and of the best plain read of its file."""
    seconds: dict[str, float] = {}
    file = folder / "data.mdb"
    for state in ("cold", "warm"):
        for threads in (1, 2):
            if state == "cold":
                drop_page_cache(file)
            taken = timed(
                together, [partial(read_plainly, file, t, threads) for t in range(threads)]
            )
            name = f"plain read, {state}"
            seconds[name] = min(taken, seconds.get(name, taken))
        if state == "cold":
            drop_page_cache(file)
        disk = open_disk(folder)
        parts = [partial(read_layers, disk, records[t::2]) for t in range(2)]
        seconds[f"disk layers, {state}"] = timed(together, parts)
        disk.close()
    return seconds


def measure_pages(records: list[ChunkKV], team: Team) -> dict[str, float]:
    """Seconds from memory to pages, as a loader's thread does, and of one copy, of all records."""
    # numbers as a model makes them: random bits hold some that take processors a hundred times as
    # long, because they are so small
    like = records[0]
    record = replace(like, kv=torch.randn(like.kv.shape).to(like.kv.dtype))
    arena = Arena.empty(
        GEOMETRY.num_layers, 4 * like.num_tokens // PAGE_TOKENS, GEOMETRY.num_kv_heads,
        GEOMETRY.head_dim, PAGE_TOKENS, dtype=torch.bfloat16, device=torch.device("cpu"),
    )  # fmt: skip
    angles = RotaryAngles(1e4 ** -torch.arange(0, 1, 2 / GEOMETRY.head_dim))
    pages = ChunkPages(arena, [angles] * GEOMETRY.num_layers, team=team)
    copy = torch.zeros_like(record.kv)
    resident = pages.hold(record)  # its pages have been written once
    assert resident is not None
    seconds = {"copy": 0.0, "to pages": 0.0}
    for _ in records:
        seconds["copy"] += timed(copy.copy_, record.kv)
        for first, last in tasks_of(record):
            seconds["to pages"] += timed(pages.write, resident, first, record.kv[first:last])
    return seconds


def drop_page_cache(file: Path) -> None:
    """Flush a file that nobody maps and drop it from the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def bytes_fetched() -> int:
    """Bytes this process made the kernel fetch from a device so far; 0 where that is not told."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def timed(action: Callable[..., object], *args: Any) -> float:
    """Seconds an action takes."""
    began = time.perf_counter()
    action(*args)
    return time.perf_counter() - began


def measure_once(records: list[ChunkKV], folder: Path, team: Team) -> dict[str, float]:
    """One turn over all operations: seconds each, and the share fetched from the device."""
    seconds: dict[str, float] = {}
    host, disk = HostTier(CAPACITY_BYTES), open_disk(folder)
    seconds["host put"] = timed(put_all, host, records)
    seconds["host get"] = timed(get_all, host, records)
    seconds["disk put"] = timed(put_all, disk, records)
    seconds["disk put, flushed"] = seconds["disk put"] + timed(disk.close)
    disk = open_disk(folder)
    get_all(disk, records)
    seconds["copy + checksum"] = seconds["disk get, warm"] = 0.0
    for record in records:  # in turns, so that both meet the same allocator and the same caches
        seconds["copy + checksum"] += timed(copy_and_checksum, record)
        seconds["disk get, warm"] += timed(get_one, disk, record)
    disk.close()
    drop_page_cache(folder / "data.mdb")
    disk = open_disk(folder)
    before = bytes_fetched()
    seconds["disk get, cold"] = timed(get_all, disk, records)
    total = sum(record.size_bytes for record in records)
    seconds["device share"] = (bytes_fetched() - before) / total
    disk.close()
    seconds |= measure_reads(records, folder) | measure_pages(records, team)
    shutil.rmtree(folder)
    return seconds


def measure(seed: int, repeats: int, folder: Path, team: Team) -> list[dict[str, Any]]:
    """Medians over `repeats` turns in which all sizes and operations take turns."""
    runs = {tokens: make_records(tokens, seed) for tokens in CHUNK_TOKENS}
    samples: Samples = {}
    for turn in range(repeats + 1):
        for tokens, records in runs.items():
            for name, value in measure_once(records, folder / "kv", team).items():
                if turn:  # the first turn only warms up
                    samples.setdefault((tokens, name), []).append(value)
    rows = []
    for (tokens, name), values in samples.items():
        if name == "device share":
            continue
        count = len(runs[tokens])
        seconds = statistics.median(values)
        yardstick = statistics.median(samples[tokens, "copy + checksum"])
        row = {
            "chunk_tokens": tokens,
            "operation": name,
            "record_bytes": runs[tokens][0].size_bytes,
            "ms_per_chunk": round(1000 * seconds / count, 4),
            "min_ms_per_chunk": round(1000 * min(values) / count, 4),
            "max_ms_per_chunk": round(1000 * max(values) / count, 4),
            "gb_per_s": round(count * runs[tokens][0].size_bytes / seconds / 1e9, 3),
            "tokens_per_s": round(count * tokens / seconds),
            "times_copy_and_checksum": round(seconds / yardstick, 3),
        }
        if name in YARDSTICKS:
            pairs = zip(values, samples[tokens, YARDSTICKS[name]], strict=True)
            row["of_yardstick"] = round(statistics.median(y / value for value, y in pairs), 3)
        if name == "disk get, cold":
            row["device_share"] = round(statistics.median(samples[tokens, "device share"]), 3)
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """The medians, one line an operation."""
    print(
        f"{'tokens':>6}  {'operation':<18}{'ms/chunk':>10}{'min':>9}{'max':>9}{'GB/s':>9}"
        f"{'tokens/s':>13}{'× copy+sum':>12}{'of best':>9}{'device':>8}"
    )
    for row in rows:
        by_reference = row["operation"].startswith("host")  # no bytes move: a rate means nothing
        rate = "-" if by_reference else f"{row['gb_per_s']:.2f}"
        tokens = "-" if by_reference else f"{row['tokens_per_s']:,}"
        device = f"{row['device_share']:.0%}" if "device_share" in row else ""
        share = f"{row['of_yardstick']:.2f}" if "of_yardstick" in row else ""
        print(
            f"{row['chunk_tokens']:>6}  {row['operation']:<18}{row['ms_per_chunk']:>10.3f}"
            f"{row['min_ms_per_chunk']:>9.3f}{row['max_ms_per_chunk']:>9.3f}{rate:>9}"
            f"{tokens:>13}{row['times_copy_and_checksum']:>12.2f}{share:>9}{device:>8}"
        )


def main() -> int:
    """Check, measure, print. Returns: the exit code, 1 when the twins differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    parser.add_argument("--repeats", type=int, default=9, help="turns measured, at least 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the store is made; its disk is measured")
    given = parser.parse_args()
    if given.repeats < 5:
        parser.error(f"--repeats: got {given.repeats}, must be at least 5. Hint: leave it out")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, ExitStack() as stack:
        team = Team(Path(folder) / "library", PAGE_TOKENS)
        stack.callback(team.close)
        for tokens in CHUNK_TOKENS:
            problem = differs_from_twin(make_records(tokens, given.seed)[:4], Path(folder) / "twin")
            if problem is not None:
                print(f"not measured: disk and host tier differ: {problem}", file=sys.stderr)
                return 1
        rows = measure(given.seed, given.repeats, Path(folder), team)
    print_table(rows)
    emit(
        {
            "benchmark": "store", "command": command_line(), "seed": given.seed,
            "geometry": "30 layers, 3 KV heads, 64 dim, bfloat16",
            **surroundings("numpy", "lmdb", "xxhash"), "rows": rows,
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
