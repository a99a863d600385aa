"""Files of indexes: whole, or refused with the reason."""

from __future__ import annotations

import mmap
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from chunkcache_indexes.ann import HnswIndex
from chunkcache_indexes.flat import FlatIndex
from chunkcache_indexes.index_file import VERSION, IndexFileError, read_index_file
from chunkcache_indexes.lexical import LexicalIndex

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    index = FlatIndex(5)
    index.add(range(9), np.eye(9, 5))
    index.save(tmp_path / "flat.idx")
    return tmp_path / "flat.idx"


def test_every_truncation_is_detected(saved: Path) -> None:
    data = saved.read_bytes()
    for length in range(len(data)):
        saved.write_bytes(data[:length])
        with pytest.raises(IndexFileError, match="truncated"):
            FlatIndex.load(saved)


def test_every_flipped_byte_is_detected(saved: Path) -> None:
    data = saved.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x40
        saved.write_bytes(bytes(damaged))
        with pytest.raises(IndexFileError):
            FlatIndex.load(saved)


def test_a_file_of_another_version_says_which(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[8:12] = (VERSION + 1).to_bytes(4, "little")
    saved.write_bytes(bytes(data))
    with pytest.raises(IndexFileError, match=f"has version {VERSION + 1}"):
        FlatIndex.load(saved)


@pytest.mark.parametrize("kind", [HnswIndex, LexicalIndex])
def test_a_file_of_another_kind_is_refused(saved: Path, kind: type[HnswIndex]) -> None:
    with pytest.raises(IndexFileError, match=f"holds a flat index, expected {kind.kind}"):
        kind.load(saved)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FlatIndex.load(tmp_path / "none.idx")


@pytest.mark.parametrize("dim", [1, 5, 7, 10, 123])
def test_a_loaded_matrix_is_aligned_and_mapped(tmp_path: Path, dim: int) -> None:
    """One that is not is copied for every product: 22 times as slow, measured with 20,000 rows."""
    index = FlatIndex(dim)
    index.add(range(3), np.ones((3, dim)))
    index.save(tmp_path / "x")
    _, arrays = read_index_file(tmp_path / "x", "flat")
    for array in arrays.values():
        assert array.ctypes.data % 64 == 0 and not array.flags.writeable
        base: object = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)


def test_what_was_loaded_stays_when_its_file_is_replaced_or_goes(saved: Path) -> None:
    loaded = FlatIndex.load(saved)
    before = loaded.search(np.ones((1, 5)), 9)
    FlatIndex(5).save(saved)
    saved.unlink()
    after = loaded.search(np.ones((1, 5)), 9)
    assert np.array_equal(after.ids, before.ids) and np.array_equal(after.scores, before.scores)


def test_a_failed_save_leaves_the_old_file_and_no_rest(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    index = FlatIndex(5)
    monkeypatch.setattr("chunkcache_indexes.index_file.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        index.save(saved)
    assert len(FlatIndex.load(saved)) == 9
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_over_an_older_file_replaces_it(saved: Path) -> None:
    FlatIndex(3).save(saved)
    assert FlatIndex.load(saved).dim == 3


def test_a_reader_sees_the_old_file_or_the_new_one_while_it_is_saved(saved: Path) -> None:
    large = FlatIndex(64)
    large.add(range(3000), np.ones((3000, 64)))
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            large.save(saved)

    writer = threading.Thread(target=save)
    writer.start()
    try:
        sizes = {len(FlatIndex.load(saved)) for _ in range(200)}
    finally:
        stop.set()
        writer.join()
    assert sizes <= {9, 3000}
