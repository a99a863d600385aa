"""Layers read and verified in C: the bytes that Python reads, or left to it, and never others."""

from __future__ import annotations

import os
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
import xxhash

from chunkcache.engine.chunk_pages import ChunkPages
from chunkcache.engine.loader import Batch, Loader
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store import slab_file
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.layout import slab_key
from chunkcache.store.lmdb_pages import LongValue, address_of
from chunkcache.store.reader import read_record
from chunkcache.store.slab_file import SlabFile
from chunkcache_kernels import Arena
from chunkcache_kernels.compiler import NoCompiler
from chunkcache_kernels.slabs import SlabReader

OpenTier = Callable[..., DiskTier]
PAGE_BYTES, HEAD_BYTES = 4096, 16
MIB = 1024 * 1024
TOKENS = 300  # slabs of 19,200 bytes: five pages
LENGTH = 19_200
LAYERS = 3
# where a layer is damaged, from its first page on, and what is said of it: None, if LMDB itself
# gives the right bytes all the same
FIELDS: dict[str, tuple[int, type[Exception] | None]] = {
    "number of the page": (0, None), "kind of the page": (10, None), "pages": (12, None),
    "keys": (HEAD_BYTES + 5, CorruptRecord),
    "values": (HEAD_BYTES + LENGTH // 2 + 5, CorruptRecord),
    "last byte": (HEAD_BYTES + LENGTH - 1, CorruptRecord),
    "padding": (HEAD_BYTES + LENGTH + 9, CorruptRecord),
}  # fmt: skip


@pytest.fixture(scope="session")
def reader() -> SlabReader:
    try:
        return SlabReader(Path(platformdirs.user_cache_dir("chunkcache", appauthor=False)))
    except NoCompiler as reason:
        pytest.skip(str(reason))


@pytest.fixture
def no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a layer in Python fails."""
    asked = lambda *_: pytest.fail("a layer was left to Python")  # noqa: E731
    monkeypatch.setattr(SlabFile, "layers", asked)


def written(file: Path, lengths: list[int]) -> tuple[list[bytes], list[int], list[int]]:
    """Values with padding, as LMDB lays them out: their bytes, first pages and paddings."""
    draw, values, pages, paddings, blob = np.random.default_rng(3), [], [], [], bytearray(4096)
    for length in lengths:
        count = -(-(length + HEAD_BYTES) // PAGE_BYTES)
        padding = count * PAGE_BYTES - HEAD_BYTES - length
        values.append(draw.bytes(length))
        pages.append(len(blob) // PAGE_BYTES)
        paddings.append(padding)
        blob += struct.pack("<QHHI", pages[-1], 0, 4, count) + values[-1] + bytes(padding)
    file.write_bytes(blob)
    return values, pages, paddings


def flip(tier: DiskTier, key: Any, layer: int, at: int) -> None:
    """One bit of a stored layer, in the file itself."""
    with tier._env.reading() as txn:
        places = tier._env.places(txn, tier._env.header(txn, key.digest))
    assert places is not None
    at += int(places.values["page"][layer]) * PAGE_BYTES
    file = os.open(tier._env._data_path, os.O_RDWR)
    os.pwrite(file, bytes([os.pread(file, 1, at)[0] ^ 0x10]), at)
    os.close(file)


@pytest.mark.parametrize("length", [
    2048, 2049, 3071, 3072, 3073, 4080, 4081, 8176, 131_072, 262_143, 262_144, 262_145, 393_216,
])  # fmt: skip
def test_what_is_read_and_its_checksum_are_those_of_the_twin(
    reader: SlabReader, tmp_path: Path, length: int
) -> None:
    values, pages, paddings = written(tmp_path / "file", [length] * 3)
    sums = [xxhash.xxh3_128_digest(v + bytes(p)) for v, p in zip(values, paddings, strict=True)]
    file = os.open(tmp_path / "file", os.O_RDONLY)
    rows = np.zeros((3, length + 7), np.uint8)

    def read(first: int, count: int, sums: list[bytes]) -> int:
        told = b"".join(length.to_bytes(8, "little") + digest for digest in sums)
        table = reader.table(told)
        assert table.values["length"].tolist() == [length] * 3
        table.values["page"], table.values["padding"] = pages, paddings
        into, stride = rows[first:].ctypes.data, rows.strides[0]
        return reader.read(file, table, first, count, PAGE_BYTES, into, length, stride)

    assert read(1, 2, sums) == 2 and not rows[0].any() and read(0, 1, sums) == 1
    assert [row[:length].tobytes() for row in rows] == values and not rows[:, length:].any()
    for wrong in range(3):
        others = [s if n != wrong else s[:-1] + bytes([s[-1] ^ 1]) for n, s in enumerate(sums)]
        assert read(0, 3, others) == wrong
    for pages[1] in (-1, 0, 10**9):  # not known, of another kind, behind the end
        assert read(0, 3, sums) == 1
    os.close(file)


@pytest.mark.usefixtures("no_python")
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_records_come_whole_and_in_parts(
    codec: str, open_tier: OpenTier, records: ModuleType, reader: SlabReader
) -> None:
    tier = open_tier(codec=codec_named(codec), reader=reader)
    plain = codec_named(codec)
    for record in (records.make_finite(1, TOKENS), records.make_finite(2, 911)):
        tier.put(record)
        wanted = torch.empty_like(record.kv)
        for layer, kv in enumerate(record.kv):
            coded = plain.encode_layer(layer, kv, record.stats)
            plain.decode_layer(layer, memoryview(coded), wanted[layer])
        found = tier.get(record.key)
        assert found is not None and torch.equal(found.kv, wanted)
        with tier.open(record.key) as opened:  # type: ignore[union-attr]
            assert torch.equal(read_record(opened).kv, wanted)
            out = torch.empty_like(wanted[:2])
            opened.read_layers(1, 3, out)
            assert torch.equal(out, wanted[1:3])
            tier.put(records.make_finite(3, 500))  # pages of trees move, the record's do not
            opened.read_layers(0, 2, out)
            assert torch.equal(out, wanted[:2])


def test_places_by_leaf_page_are_those_by_key(
    open_tier: OpenTier, records: ModuleType, reader: SlabReader
) -> None:
    """Also where a record goes on in another leaf, and where layers are missing."""
    tier = open_tier(reader=reader)
    made = [records.make_record(number, 70) for number in range(150)]
    for record in made:
        tier.put(record)
    lost = made[:LAYERS]
    with tier._env.writing() as txn:
        for layer, record in enumerate(lost):
            txn.delete(slab_key(record.key.digest, layer), db=tier._env._slabs)
    in_two = 0
    with tier._env.reading() as txn, txn.cursor(db=tier._env._slabs) as cursor:
        for record in made:
            header = tier._env.header(txn, record.key.digest)
            ours = tier._env.places(txn, header)
            theirs = slab_file._places(txn, tier._env._slabs, header, 0, LAYERS)
            assert ours is not None
            told = ours.values["length"] + ours.values["padding"]
            found = [
                LongValue(page, length) if page >= 0 else None
                for page, length in zip(ours.values["page"].tolist(), told.tolist(), strict=True)
            ]
            assert found == theirs
            assert (None in theirs) is any(record is one for one in lost)
            cursor.set_range(record.key.digest)
            address = address_of(cursor.key())
            assert address is not None
            here = reader.find(ours, 0, address, 32, PAGE_BYTES)
            in_two += None not in theirs and here < LAYERS
    assert in_two, "the layers of no record lie in two leaves"


def test_what_another_process_takes_the_place_of_is_right_or_gone(
    open_tier: OpenTier, records: ModuleType, reader: SlabReader, tmp_path: Path,
    other_process: Any,
) -> None:  # fmt: skip
    """Records are open for as long as it evicts, deletes and writes over them; the map grows."""
    tier = open_tier(MIB // 2, map_bytes=MIB // 2, reader=reader)
    made = [records.make_record(number, TOKENS) for number in range(24)]
    opened: dict[int, Any] = {}
    outcomes = Counter[str]()

    def read(number: int) -> str:
        out = torch.empty_like(made[number].kv)
        try:
            opened[number].read_layers(0, LAYERS, out)
        except StoreError as error:
            assert type(error) is StoreError and "gone" in error.message, "nothing is damaged"
            return "gone"
        wanted = made[number].kv.view(torch.uint8)
        assert torch.equal(out.view(torch.uint8), wanted), "other bytes than were put"
        return "right"

    def look() -> None:
        wanted = [number for number in range(len(made)) if number not in opened]
        found = tier.open_many([made[number].key for number in wanted])
        opened.update({n: one for n, one in zip(wanted, found, strict=True) if one is not None})
        outcomes.update(read(number) for number in opened)

    filled = {"first": 0, "last": 24, "num_tokens": TOKENS, "capacity_bytes": MIB}
    other_process.ask("fill", path=tmp_path / "kv", deletes=True, meanwhile=look, **filled)
    look()
    for one in opened.values():
        with one:
            pass
    assert not tier._mirror._leases and min(outcomes["right"], outcomes["gone"]) > 0


def test_a_file_cut_short_or_replaced_under_a_reader_is_an_error_or_right(
    open_tier: OpenTier, records: ModuleType, reader: SlabReader
) -> None:
    tier, record = open_tier(reader=reader), records.make_record(1, TOKENS)
    tier.put(record)
    file, out = Path(tier._env._data_path), torch.empty_like(record.kv)
    with tier.open(record.key) as opened:  # type: ignore[union-attr]
        file.rename(file.with_name("aside"))
        file.write_bytes(bytes(file.with_name("aside").stat().st_size))
        opened.read_layers(0, LAYERS, out)  # of the file that it was opened in
        assert torch.equal(out.view(torch.uint8), record.kv.view(torch.uint8))
        assert isinstance(tier.open_many([record.key])[0], StoreError)
        file.with_name("aside").rename(file)
        os.truncate(file, 2 * PAGE_BYTES)
        with pytest.raises(StoreError, match="truncated"):
            opened.read_layers(0, LAYERS, out)
    assert not tier._mirror._leases


def test_layers_too_small_for_it_are_left_to_python(
    open_tier: OpenTier, records: ModuleType, reader: SlabReader
) -> None:
    tier, record = open_tier(reader=reader), records.make_record(1)
    tier.put(record)
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("field", FIELDS)
def test_a_layer_is_right_or_corrupt(
    field: str, layer: int, open_tier: OpenTier, records: ModuleType, reader: SlabReader
) -> None:
    tier, record = open_tier(reader=reader), records.make_record(1, TOKENS)
    tier.put(record)
    at, error = FIELDS[field]
    out = torch.empty_like(record.kv)
    with tier.open(record.key) as opened:  # type: ignore[union-attr]
        flip(tier, record.key, layer, at)
        if error is not None:
            with pytest.raises(error) as raised:
                opened.read_layers(0, LAYERS, out)
            assert type(raised.value) is error
        else:
            opened.read_layers(0, LAYERS, out)
            assert torch.equal(out.view(torch.uint8), record.kv.view(torch.uint8))
    assert tier.contains(record.key) is (error is not CorruptRecord)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("field", [name for name, (_, error) in FIELDS.items() if error])
def test_nothing_damaged_comes_to_a_page(
    field: str, layer: int, open_tier: OpenTier, records: ModuleType, reader: SlabReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither the layer nor any behind it; the chunk is found by nobody, its pages are free."""
    monkeypatch.setattr("chunkcache.engine.loader.TASK_BYTES", 1)  # a layer at a time
    tier, record = open_tier(reader=reader), records.make_record(1, TOKENS)
    tier.put(record)
    where = torch.device("cpu")
    arena = Arena.empty(LAYERS, 12, 2, 8, 32, dtype=torch.bfloat16, device=where)
    arena.keys.fill_(99)
    arena.values.fill_(99)
    pages, ended = ChunkPages(arena, [None] * LAYERS), threading.Event()
    loader = Loader(pages)
    opened = tier.open(record.key)
    expected = pages.expect(record.key, record.stats)
    assert opened is not None and expected is not None
    resident = expected[0]
    flip(tier, record.key, layer, FIELDS[field][0])
    loader.load(Batch("disk", 0.0, on_end=lambda _: ended.set()), [(opened, resident)])
    assert ended.wait(30)
    loader.close()
    assert resident.arrival.failure == "corrupt"
    assert resident.arrival._here == [n < layer for n in range(LAYERS)]
    assert (arena.keys[layer:] == 99).all() and (arena.values[layer:] == 99).all()
    assert pages.lease(record.key) is None and not tier.contains(record.key)
    pages.release([resident])
    assert pages.usage().size_bytes == 0
