"""The codec with a basis of the corpus: against a slow twin, and what its file is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from chunkcache.chunk import ChunkKV, KVGeometry
from chunkcache.errors import ConfigError, CorruptRecord, StoreError
from chunkcache.store.codec import codec_named
from chunkcache.store.codec.basis import (
    Basis,
    allocated_bits,
    fit_basis,
    read_basis,
    write_basis,
)
from chunkcache.store.codec.coefficients import lloyd_max

GEOMETRY = KVGeometry(2, 2, 8, "float32", "rope")


@pytest.fixture(scope="module")
def corpus(records: ModuleType) -> list[ChunkKV]:
    """Chunks whose channels go together: four directions hold nearly all."""
    draw = np.random.default_rng(0)
    directions = draw.standard_normal((2, 2, 4, 16)) * np.array([8, 4, 2, 1])[:, None]
    made = []
    for number, tokens in enumerate((30, 64, 1, 50, 200)):
        rows = draw.standard_normal((2, 2, tokens, 4)) @ directions + 5.0
        rows += 0.05 * draw.standard_normal(rows.shape)
        record = records.make_record(number, tokens, GEOMETRY)
        kv = torch.from_numpy(rows.astype(np.float32)).view(2, 2, tokens, 2, 8)
        made.append(replace(record, kv=kv))
    return made


@pytest.fixture(scope="module")
def named(corpus: list[ChunkKV], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("bases") / "new"
    return write_basis(fit_basis(corpus), folder), folder


def test_a_basis_is_that_of_all_rows_together(corpus: list[ChunkKV]) -> None:
    basis = fit_basis(iter(corpus))
    rows = torch.cat([record.kv.flatten(3) for record in corpus], dim=2).double()
    for layer in range(2):
        for part in range(2):
            own = rows[layer, part].numpy()
            np.testing.assert_allclose(basis.mean[layer, part], own.mean(axis=0), rtol=1e-4)
            values = np.sort(np.linalg.eigvalsh(np.cov(own.T, bias=True)))[::-1]
            np.testing.assert_allclose(basis.variance[layer, part], values, rtol=1e-3, atol=1e-5)
            vectors = basis.vectors[layer, part]
            torch.testing.assert_close(vectors.T @ vectors, torch.eye(16), atol=1e-5, rtol=0)


def test_bits_go_where_they_help_most() -> None:
    variance = np.array([64.0, 16.0, 4.0, 1.0, 0.25, 0.0])
    assert allocated_bits(variance, 1.0).tolist() == [3, 2, 1, 0, 0, 0]
    assert allocated_bits(variance, 0.0).sum() == 0
    assert allocated_bits(variance, 8.0).tolist() == [8] * 6

    def loss(bits: tuple[int, ...]) -> float:
        return float(sum(v / 4**b for v, b in zip(variance, bits, strict=True)))

    every = [b for b in np.ndindex((5,) * 6) if sum(b) == 8]  # by trying all
    assert loss(tuple(allocated_bits(variance, 8 / 6))) == min(map(loss, every))


@pytest.mark.parametrize(("bits", "loss"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_centres_lose_what_max_found(bits: int, loss: float) -> None:
    """J. Max, Quantizing for minimum distortion, 1960, table I."""
    draw = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    centres = lloyd_max(bits)
    nearest = centres[(draw[:, None] - centres).abs().argmin(dim=1)]
    assert float((draw - nearest).square().mean()) == pytest.approx(loss, rel=0.02)
    assert torch.equal(centres, centres.sort().values)


def naive_round_trip(kv: torch.Tensor, basis: Basis, layer: int, k: float, v: float) -> np.ndarray:
    out = np.zeros(kv.shape, np.float32)
    for part, mean_bits in enumerate((k, v)):
        rows = kv[part].flatten(1).numpy()
        bits = allocated_bits(basis.variance[layer, part].numpy(), mean_bits)
        back = np.tile(basis.mean[layer, part].numpy(), (len(rows), 1))
        for at in range(rows.shape[1]):
            direction = basis.vectors[layer, part, :, at].numpy()
            numbers = (rows - basis.mean[layer, part].numpy()) @ direction
            scale = torch.tensor(np.sqrt((numbers**2).mean())).to(torch.bfloat16).item()
            if not bits[at]:
                continue
            centres = lloyd_max(int(bits[at])).numpy()
            for row, number in enumerate(numbers):
                nearest = centres[np.abs(centres - number / max(scale, 1e-38)).argmin()]
                back[row] += scale * nearest * direction
        out[part] = back.reshape(kv.shape[1:])
    return out


@pytest.mark.parametrize(("k", "v"), [(1.5, 3.0), (0.0, 8.0), (8.0, 0.25)])
def test_it_is_its_slow_twin(
    corpus: list[ChunkKV], named: tuple[str, Path], k: float, v: float
) -> None:
    digest, folder = named
    codec = codec_named(f"basis(file={digest},k={k},v={v})", folder)
    for record in corpus[:3]:
        for layer, kv in enumerate(record.kv):
            coded = codec.encode_layer(layer, kv, record.stats)
            assert coded == codec.encode_layer(layer, kv.clone(), record.stats)
            found = torch.empty_like(kv)
            codec.decode_layer(layer, memoryview(coded), found)
            twin = naive_round_trip(kv, read_basis(folder, digest), layer, k, v)
            # a number between two centres may go either way: few do; products are of 16 bits
            differs = np.abs(found.numpy() - twin) > 5e-4 * np.sqrt((twin**2).mean())
            assert differs.mean() < 0.02


def test_few_bits_do_where_few_directions_hold_all(
    corpus: list[ChunkKV], named: tuple[str, Path]
) -> None:
    digest, folder = named
    errors = {}
    for name in (f"basis(file={digest},k=1.5,v=1.5)", "bits(k=2,v=2,group=64)"):
        codec, record = codec_named(name, folder), corpus[4]
        coded = codec.encode_layer(0, record.kv[0], record.stats)
        found = torch.empty_like(record.kv[0])
        codec.decode_layer(0, memoryview(coded), found)
        errors[name] = float((found - record.kv[0]).norm() / (record.kv[0] - 5).norm()), len(coded)
    basis, bits = errors.values()
    assert basis[0] < bits[0] / 2 and basis[1] < bits[1]


def test_wrong_lengths_shapes_and_numbers_are_refused(
    corpus: list[ChunkKV], named: tuple[str, Path]
) -> None:
    digest, folder = named
    codec, record = codec_named(f"basis(file={digest})", folder), corpus[0]
    coded = codec.encode_layer(0, record.kv[0], record.stats)
    for wrong in (b"", coded[:-1], coded + b"\0"):
        with pytest.raises(CorruptRecord, match="expected"):
            codec.decode_layer(0, memoryview(wrong), torch.empty_like(record.kv[0]))
    for odd in (torch.inf, torch.nan):
        kv = record.kv[0].clone()
        kv[1, 3, 0, 0] = odd
        with pytest.raises(StoreError, match="no number"):
            codec.encode_layer(0, kv, record.stats)
    for layer, kv in ((2, record.kv[0]), (0, record.kv[0][..., :4])):
        with pytest.raises(StoreError, match="has others"):
            codec.encode_layer(layer, kv, record.stats)


@pytest.mark.parametrize("form", ["basis(file={})", "zstd(over=basis(file={}))"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_model_of_fewer_or_more_layers_is_refused(
    named: tuple[str, Path], form: str, layers: int
) -> None:
    digest, folder = named
    codec_named(form.format(digest), folder, geometry=GEOMETRY)
    with pytest.raises(ConfigError, match=r"has 2 layers of .*Hint"):
        codec_named(form.format(digest), folder, geometry=replace(GEOMETRY, num_layers=layers))


def test_a_file_that_is_missing_damaged_or_misnamed_is_refused(
    named: tuple[str, Path], tmp_path: Path
) -> None:
    digest, folder = named
    with pytest.raises(ConfigError, match=r"no such basis.*Hint"):
        codec_named(f"basis(file={digest})", tmp_path)
    octets = (folder / f"{digest}.basis").read_bytes()
    for wrong in (octets[:-1], octets[:100] + b"\0" + octets[101:], b""):
        (tmp_path / f"{digest}.basis").write_bytes(wrong)
        with pytest.raises(ConfigError, match="damaged"):
            codec_named(f"basis(file={digest})", tmp_path)
    assert [file.name for file in folder.iterdir()] == [f"{digest}.basis"]  # nothing half-written


def test_chunks_that_do_not_go_together_are_refused(
    corpus: list[ChunkKV], records: ModuleType
) -> None:
    with pytest.raises(StoreError, match="no chunk to fit"):
        fit_basis([])
    with pytest.raises(StoreError, match="different models"):
        fit_basis([corpus[0], records.make_record(1, 5, records.ODD)])
