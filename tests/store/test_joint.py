"""The codec with a basis of several layers: against a slow twin, whole and in part, from disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from chunkcache.chunk import ChunkKV, KVGeometry
from chunkcache.codec_spec import stored_under
from chunkcache.config import load_settings
from chunkcache.errors import ConfigError, CorruptRecord, StoreError
from chunkcache.store import open_store, store_path
from chunkcache.store.codec import codec_named, read_through
from chunkcache.store.codec.basis import fit_basis, write_basis
from chunkcache.store.codec.coefficients import lloyd_max
from chunkcache.store.codec.joint import (
    JointBasis,
    JointCodec,
    bits_for,
    fit_joint_basis,
    read_joint_basis,
    write_joint_basis,
)
from chunkcache.store.codec.layers import decode_layers, encode_layers
from chunkcache.store.disk import DiskTier
from chunkcache.store.frame import frame_of, unframed
from chunkcache.store.reader import read_record
from chunkcache.store.record import decode_header

if TYPE_CHECKING:
    from chunkcache.metrics import Metrics

GEOMETRY = KVGeometry(5, 2, 4, "float32", "rope")
TOGETHER = 2  # so that the last group has a layer less


@pytest.fixture(scope="module")
def corpus(records: ModuleType) -> list[ChunkKV]:
    """Chunks whose layers go together: six directions hold nearly all of a token."""
    draw = np.random.default_rng(0)
    directions = draw.standard_normal((6, 5 * 2 * 8))
    sizes = np.repeat([1.0, 100.0, 0.01, 1.0, 5.0], 2 * 8)  # of the layers
    made = []
    for number, tokens in enumerate((30, 64, 1, 50, 201)):
        rows = draw.standard_normal((tokens, 6)) @ directions
        rows = (rows + 0.05 * draw.standard_normal(rows.shape) + 3.0) * sizes
        kv = rows.reshape(tokens, 5, 2, 2, 4).transpose(1, 2, 0, 3, 4).astype(np.float32)
        record = records.make_record(number, tokens, GEOMETRY)
        made.append(replace(record, kv=torch.from_numpy(kv.copy())))
    return made


@pytest.fixture(scope="module")
def named(corpus: list[ChunkKV], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("bases") / "new"
    return write_joint_basis(fit_joint_basis(corpus, TOGETHER), folder), folder


@pytest.fixture(scope="module")
def codec(named: tuple[str, Path]) -> JointCodec:
    made = codec_named(f"joint(file={named[0]},bits=2)", named[1])
    assert isinstance(made, JointCodec)
    return made


def slabs_of(codec: JointCodec, record: ChunkKV) -> list[memoryview]:
    return [memoryview(slab) for slab in encode_layers(codec, record.kv, record.stats)]


def naive_round_trip(kv: np.ndarray, basis: JointBasis, bits: np.ndarray) -> np.ndarray:
    """Group by group and coefficient by coefficient."""
    layers, _, tokens = kv.shape[:3]
    rows, back, used = kv.reshape(layers, 2, tokens, -1), [], 0
    for group, vectors in enumerate(basis.vectors):
        own = range(group * TOGETHER, min((group + 1) * TOGETHER, layers))
        parts = [(layer, part) for layer in own for part in (0, 1)]
        table = np.concatenate(
            [(rows[p] - basis.mean[p].numpy()) / basis.spread[p].item() for p in parts], axis=1
        )
        restored = np.zeros_like(table)
        for at, direction in enumerate(vectors.numpy().T):
            numbers = table @ direction
            scale = torch.tensor(np.sqrt((numbers**2).mean())).to(torch.bfloat16).item()
            if bits[used + at]:
                centres = lloyd_max(int(bits[used + at])).numpy()
                nearest = np.abs(centres[None] - numbers[:, None] / max(scale, 1e-38)).argmin(1)
                restored += scale * centres[nearest][:, None] * direction
        used += len(vectors)
        cut = np.split(restored, len(parts), axis=1)
        pairs = zip(parts, cut, strict=True)
        whole = [basis.mean[p].numpy() + basis.spread[p].item() * numbers for p, numbers in pairs]
        back += [np.stack(whole[at : at + 2]) for at in range(0, len(whole), 2)]
    return np.stack(back).reshape(kv.shape)


@pytest.mark.parametrize("mean_bits", [0.4, 2.0])
def test_it_is_its_slow_twin(
    corpus: list[ChunkKV], named: tuple[str, Path], mean_bits: float
) -> None:
    digest, folder = named
    codec = codec_named(f"joint(file={digest},bits={mean_bits})", folder)
    basis = read_joint_basis(folder, digest)
    bits = bits_for(torch.cat(basis.variance).numpy(), mean_bits)
    for record in corpus[:3]:
        found = read_through(codec, record)
        assert found.rounded_by == codec.name
        twin = naive_round_trip(record.kv.numpy(), basis, bits)
        size = record.kv.abs().amax(dim=(1, 2, 3, 4), keepdim=True).numpy()
        # a number between two centres may go either way: few do
        assert (np.abs(found.kv.numpy() - twin) > 1e-3 * size).mean() < 0.02


def test_layers_that_go_together_take_fewer_bits_than_apart(
    corpus: list[ChunkKV], codec: JointCodec, tmp_path: Path
) -> None:
    apart = write_basis(fit_basis(corpus), tmp_path)
    errors, lengths = [], []
    for one in (codec, codec_named(f"basis(file={apart},k=2,v=2)", tmp_path)):
        record = corpus[4]
        off = (read_through(one, record).kv - record.kv).flatten(1).norm(dim=1)
        errors.append(off / record.kv.flatten(1).norm(dim=1))
        lengths.append(sum(map(len, encode_layers(one, record.kv, record.stats))))
    joint, single = errors
    assert lengths[0] <= lengths[1]
    assert bool((joint[:4] < single[:4] / 2).all()), "of every layer that goes with another"


def test_bits_go_where_they_help_most() -> None:
    variance = np.array([64.0, 16.0, 4.0, 1.0, 0.25, 0.0])
    losses = [1.0, 0.3634, 0.1175, 0.03454, 0.009497]  # Max 1960, table I

    def loss(bits: tuple[int, ...]) -> float:
        return sum(v * losses[b] for v, b in zip(variance, bits, strict=True))

    every = [b for b in np.ndindex((5,) * 6) if sum(b) == 9]  # by trying all
    assert loss(tuple(bits_for(variance, 1.5))) == pytest.approx(min(map(loss, every)))
    assert bits_for(variance, 0.0).tolist() == [0] * 6
    assert bits_for(variance, 8.0).tolist() == [8] * 6


def test_any_run_of_layers_decodes_to_what_it_is_in_the_whole(
    corpus: list[ChunkKV], codec: JointCodec
) -> None:
    record = corpus[0]
    slabs, whole = slabs_of(codec, record), torch.empty_like(record.kv)
    decode_layers(codec, slabs, whole)
    for first in range(5):
        for end in range(first + 1, 6):
            begin, stop = codec.around(first, end)
            assert begin <= first < end <= stop
            part = torch.empty_like(record.kv[first:end])
            codec.decode_layers(first, slabs[begin:stop], part)
            torch.testing.assert_close(part, whole[first:end], rtol=1e-5, atol=1e-4)


def test_layers_come_one_at_a_time_in_the_same_memory(
    corpus: list[ChunkKV], codec: JointCodec
) -> None:
    record = corpus[3]

    def layers() -> object:
        memory = torch.empty_like(record.kv[0])
        for kv in record.kv:
            yield memory.copy_(kv)

    assert list(encode_layers(codec, layers(), record.stats)) == slabs_of(codec, record)  # type: ignore[arg-type]


def test_wrong_lengths_shapes_and_numbers_are_refused(
    corpus: list[ChunkKV], codec: JointCodec
) -> None:
    record = corpus[0]
    slabs, out = slabs_of(codec, record), torch.empty_like(record.kv)
    longer = memoryview(bytes(slabs[0]) + b"\0")
    for wrong in (slabs[:-1], [*slabs[:-1], slabs[-1][:-1]], [longer, slabs[1][1:], *slabs[2:]]):
        with pytest.raises(CorruptRecord, match=r"joint.*(expected|not 5)"):
            decode_layers(codec, wrong, out)
    for odd in (torch.inf, torch.nan):
        kv = record.kv.clone()
        kv[1, 1, 3, 0, 0] = odd
        with pytest.raises(StoreError, match="no number"):
            read_through(codec, replace(record, kv=kv))
    more = torch.cat((record.kv, record.kv[:1]))
    for kv in (more, record.kv[..., :2], record.kv[:1], record.kv[:3]):
        with pytest.raises(StoreError, match="has others"):
            read_through(codec, replace(record, kv=kv))
    for first, kv in ((1, record.kv[1:3]), (0, record.kv[:4])):  # groups that are none
        with pytest.raises(StoreError, match="has others"):
            codec.encode_layers(first, kv)


@pytest.mark.parametrize(("odd", "reason"), [(torch.nan, "no number"), (3e38, "too large")])
def test_odd_numbers_are_refused_where_no_direction_is_kept(
    corpus: list[ChunkKV], named: tuple[str, Path], odd: float, reason: str
) -> None:
    codec, kv = codec_named(f"joint(file={named[0]},bits=0)", named[1]), corpus[0].kv.clone()
    assert all(not slab for slab in encode_layers(codec, kv, corpus[0].stats))
    kv[4, 0, 3, 0, 0] = odd
    with pytest.raises(StoreError, match=reason):
        read_through(codec, replace(corpus[0], kv=kv))


def test_a_model_of_other_layers_or_channels_is_refused_before_the_store_is_opened(
    named: tuple[str, Path], tmp_path: Path, metrics: Metrics, records: ModuleType
) -> None:
    digest, folder = named
    shutil.copytree(folder, tmp_path / "bases")
    # four layers: whole groups of it, of two
    for odd in ({"num_layers": 4}, {"num_layers": 6}, {"num_kv_heads": 1}):
        for setting in ("codec", "cold_codec"):
            settings = load_settings(home=tmp_path, store={setting: f"joint(file={digest})"})
            with pytest.raises(ConfigError, match=r"5 layers of 8 channels.*others.*Hint"):
                open_store(
                    settings, records.FINGERPRINT, metrics, geometry=replace(GEOMETRY, **odd)
                )
            assert not store_path(settings).exists()
    open_store(settings, records.FINGERPRINT, metrics, geometry=GEOMETRY).close()


def test_chunks_and_groups_that_do_not_do_are_refused(
    corpus: list[ChunkKV], records: ModuleType
) -> None:
    with pytest.raises(StoreError, match="no chunk to fit"):
        fit_joint_basis([], 2)
    with pytest.raises(StoreError, match="different models"):
        fit_joint_basis([corpus[0], records.make_record(1, 5, records.ODD)], 2)
    wide = replace(corpus[0], kv=torch.zeros((5, 2, 1, 4, 128)))
    with pytest.raises(StoreError, match=r"layers: got 5, 5120 numbers.*Hint: at most 4"):
        fit_joint_basis([wide], 5)


def test_a_basis_of_the_other_codec_is_refused(
    corpus: list[ChunkKV], named: tuple[str, Path], tmp_path: Path
) -> None:
    digest, folder = named
    with pytest.raises(ConfigError, match=r"for the codec joint.*Hint"):
        codec_named(f"basis(file={digest})", folder)
    single = write_basis(fit_basis(corpus), tmp_path)
    with pytest.raises(ConfigError, match=r"for the codec basis.*Hint"):
        codec_named(f"joint(file={single})", tmp_path)
    with pytest.raises(ConfigError, match="no such basis"):
        codec_named(f"joint(file={digest})", tmp_path)


# ------------------------------------------------------------ in tiers


def test_records_on_disk_are_read_layer_by_layer_and_damage_is_found(
    open_tier: Callable[..., DiskTier], corpus: list[ChunkKV], codec: JointCodec
) -> None:
    tier, record = open_tier(codec=codec), corpus[1]
    expected = read_through(codec, record).kv
    assert tier.put(record)
    ((digest, _),) = tier.entries()
    assert digest == stored_under(record.key.digest, codec.name) != record.key.digest
    with tier.open(record.key) as reader:
        assert reader.rounded_by == codec.name
        for layer in (3, 0, 4):  # of three groups, and not in order
            kv = torch.empty_like(record.kv[:1])
            reader.read_layers(layer, layer + 1, kv)
            torch.testing.assert_close(kv[0], expected[layer], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(read_record(reader).kv, expected)


def test_a_frame_comes_back_and_a_damaged_one_does_not(
    corpus: list[ChunkKV], codec: JointCodec, records: ModuleType
) -> None:
    record = corpus[4]
    frame = frame_of(record, codec, records.FINGERPRINT)
    header, body = decode_header(frame.header), b"".join(frame.slabs)
    found = unframed(header, body, record.key, codec)
    torch.testing.assert_close(found.kv, read_through(codec, record).kv)
    wrong = bytearray(body)
    wrong[len(body) // 2] ^= 1
    with pytest.raises(CorruptRecord, match="checksum"):
        unframed(header, bytes(wrong), record.key, codec)


def test_a_cold_record_becomes_one_of_it(
    open_tier: Callable[..., DiskTier], corpus: list[ChunkKV], codec: JointCodec
) -> None:
    long = torch.cat([corpus[4].kv] * 20, dim=2)
    record = replace(corpus[4], kv=long)
    record = replace(record, key=type(record.key)(record.key.digest, tuple(range(long.shape[2]))))
    wide = np.resize(record.stats.token_inter, long.shape[2])
    record = replace(record, stats=replace(record.stats, token_inter=wide, token_head=wide))
    tier = open_tier(cold=codec)
    assert tier.put(record) and (tier.recode(record.key.digest, codec) or 0) > 0
    found = tier.get(record.key)
    assert found is not None and found.rounded_by == codec.name
    torch.testing.assert_close(found.kv, read_through(codec, record).kv)
