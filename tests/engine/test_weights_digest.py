"""Weight files are digested once; a change of size or time makes it happen again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import xxhash

from chunkcache.engine import weights
from chunkcache.engine.weights import file_sha256, weights_digest
from chunkcache.errors import ModelNotFound


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"one" * 5)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"two" * 5)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_digest_is_of_all_shards_in_order(sharded: Path, tmp_path: Path) -> None:
    expected = xxhash.xxh3_128(b"one" * 5 + b"two" * 5).hexdigest()
    assert weights_digest(sharded, tmp_path / "cache") == expected
    (sharded / "config.json").write_text('{"changed": 1}')  # not a weight
    assert weights_digest(sharded, tmp_path / "cache") == expected


def test_old_style_bin_files_are_weights_too(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"bin")
    expected = xxhash.xxh3_128(b"bin").hexdigest()
    assert weights_digest(tmp_path, tmp_path / "cache") == expected


def test_weights_are_read_once_and_again_when_size_or_time_has_changed(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    real = xxhash.xxh3_128
    monkeypatch.setattr(weights.xxhash, "xxh3_128", lambda: reads.append(1) or real())
    first = weights_digest(sharded, tmp_path / "cache")
    assert weights_digest(sharded, tmp_path / "cache") == first
    assert len(reads) == 1
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(b"TWO" * 5)
    os.utime(shard, ns=(0, 12345))
    second = weights_digest(sharded, tmp_path / "cache")
    assert second != first
    shard.write_bytes(b"TWO" * 6)
    os.utime(shard, ns=(0, 12345))
    assert weights_digest(sharded, tmp_path / "cache") not in {first, second}
    assert len(reads) == 3


@pytest.mark.parametrize("damaged", ["", "0" * 31, "0" * 31 + "g", "0" * 33])
def test_a_damaged_memo_is_not_believed(sharded: Path, tmp_path: Path, damaged: str) -> None:
    digest = weights_digest(sharded, tmp_path / "cache")
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    memo.write_text(damaged)
    assert weights_digest(sharded, tmp_path / "cache") == digest
    assert memo.read_text() == digest
    memo.write_bytes(b"\xff\xfe")
    assert weights_digest(sharded, tmp_path / "cache") == digest


def test_a_cache_that_takes_no_memo_costs_time_and_nothing_else(
    sharded: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    expected = weights_digest(sharded, tmp_path / "other")
    assert weights_digest(sharded, tmp_path / "cache") == expected


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"no \*.safetensors or \*.bin files in .* Hint: "):
        weights_digest(tmp_path, tmp_path / "cache")


def test_file_sha256_is_the_files_own(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 300_000)
    assert file_sha256(path) == hashlib.sha256(b"x" * 300_000).hexdigest()
