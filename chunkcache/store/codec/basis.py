"""One basis for the chunks of a corpus, coefficients for each chunk: after KVTC (arXiv 2511.01815).

`fit_basis` finds, for K and V of every layer, the mean and the principal directions of a corpus. A
chunk is then its coefficients, each rounded to a number of bits of its own: those that vary most
get most, as the corpus says, so that the mean is `k` bits for K and `v` for V. A basis is a file
that is named by the digest of its bytes, and the name is a parameter of the codec.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from chunkcache.durable import whole_file
from chunkcache.errors import ConfigError, CorruptRecord, StoreError
from chunkcache.store.codec.coefficients import (
    MOST_BITS,
    Coefficients,
    coded_bytes,
    runs_of,
    scales_of,
)
from chunkcache_kernels.codes import Directions, Runs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chunkcache.chunk import ChunkKV, ChunkStats
    from chunkcache.codec_spec import CodecSpec
    from chunkcache_kernels.codes import Codes

_MOST_CHANNELS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Of K and V of every layer, all float32: `[layers, 2, channels]` and one axis more."""

    mean: torch.Tensor
    variance: torch.Tensor  # of the coefficients, falling
    vectors: torch.Tensor  # `[layers, 2, channels, channels]`, a direction is a column


def fit_basis(records: Iterable[ChunkKV]) -> Basis:
    """The basis of these chunks. Memory and time do not grow with their number but the reading.

    Raises:
        StoreError: there is no chunk, or one is not like the others, or of too many channels.
    """
    count, total, square = 0, None, None
    for record in records:
        rows = record.kv.flatten(3).double()
        if rows.shape[-1] > _MOST_CHANNELS:
            raise StoreError(
                f"basis: got {rows.shape[-1]} channels, at most {_MOST_CHANNELS}. Hint: int4"
            )
        if total is None or square is None:
            total = torch.zeros_like(rows[:, :, 0])
            square = total.new_zeros((*total.shape, total.shape[-1]))
        if total.shape != rows[:, :, 0].shape:
            raise StoreError("basis: the chunks are of different models")
        count += record.num_tokens
        total += rows.sum(dim=2)
        square += rows.transpose(2, 3) @ rows
    if total is None or square is None:
        raise StoreError("basis: no chunk to fit it to. Hint: ingest and warm some first")
    mean = total / count
    spread = square / count - mean[..., :, None] * mean[..., None, :]
    variance, vectors = torch.linalg.eigh(spread)
    return Basis(
        mean.float(), variance.flip(-1).clamp_min(0).float(), vectors.flip(-1).float().contiguous()
    )


def write_basis(basis: Basis, folder: Path) -> str:
    """Keep a basis among others, whole or not at all; returns the digest that names it.

    Raises:
        StoreError: it cannot be written.
    """
    return write_tensors(
        {"mean": basis.mean, "variance": basis.variance.contiguous(), "vectors": basis.vectors},
        folder,
    )


def write_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> str:
    """What a basis is, as a file; returns the digest that names it. Raises `StoreError`."""
    octets = save(tensors)
    digest = hashlib.blake2b(octets, digest_size=16).hexdigest()
    with whole_file(_file(folder, digest)) as file:
        file.write(octets)
    return digest


def read_basis(folder: Path, digest: str) -> Basis:
    """The basis of that name.

    Raises:
        ConfigError: it is not there, is no such basis, or its bytes are not those of its name.
    """
    found = read_tensors(folder, digest)
    try:
        return Basis(found["mean"], found["variance"], found["vectors"])
    except KeyError as error:
        raise ConfigError(
            f"store.codec or store.cold_codec: got file={digest}, that basis is of several layers "
            "together, for the codec joint. Hint: chunkcache fit-basis makes one of single layers"
        ) from error


def read_tensors(folder: Path, digest: str) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote.

    Raises:
        ConfigError: it is not there, or its bytes are not those that its name says.
    """
    file = _file(folder, digest)
    try:
        octets = file.read_bytes()
        if hashlib.blake2b(octets, digest_size=16).hexdigest() != digest:
            raise ConfigError(
                f"store.codec or store.cold_codec: {file} is damaged. Hint: fit the basis again"
            )
        return load(octets)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"store.codec or store.cold_codec: got file={digest}, there is no such basis: {error}. "
            "Hint: chunkcache fit-basis makes one and says its name"
        ) from error


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.basis"


class BasisCodec:
    """See the module. Coefficients without bits are left at the corpus's mean."""

    def __init__(self, spec: CodecSpec, folder: Path, codes: Codes | None = None) -> None:
        self.name = str(spec)
        basis = read_basis(folder, str(dict(spec.parameters)["file"]))
        wanted = spec.number("k"), spec.number("v")
        self._mean = basis.mean
        self.fitted_to = basis.mean.shape[0], basis.mean.shape[-1]
        self._directions = basis.vectors.mT.contiguous()  # a row is one: as decoding reads them
        self._runs = [
            [
                Runs(runs_of(allocated_bits(own.numpy(), mean)))
                for own, mean in zip(layer, wanted, strict=True)
            ]
            for layer in basis.variance
        ]
        self._coefficients = Coefficients(codes)
        self._codes = codes
        self._narrow: list[list[Directions]] = []  # those kept, where C multiplies by them
        if codes is not None and codes.restores:
            self._narrow = [
                [Directions(d[: r.kept], m) for d, m, r in zip(*layer, strict=True)]
                for layer in zip(self._directions, self._mean, self._runs, strict=True)
            ]

    def encode_layer(self, layer: int, kv: torch.Tensor, stats: ChunkStats) -> bytes:
        """See `Codec`."""
        self._check(layer, kv)
        parts = []
        for part, rows in enumerate(kv.flatten(2).float()):
            numbers = (rows - self._mean[layer, part]) @ self._directions[layer, part].T
            scales = scales_of(numbers)
            if not bool(scales.isfinite().all()):  # one odd number makes all of them so
                reason = (
                    "numbers too large for it" if rows.isfinite().all() else "what is no number"
                )
                raise StoreError(f"{self.name}: the KV has {reason}")
            parts.append(self._coefficients.coded(numbers, scales, self._runs[layer][part]))
        return b"".join(parts)

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """See `Codec`."""
        self._check(layer, out)
        tokens = out.shape[1]
        into = out.view(2, tokens, -1)
        lengths = [coded_bytes(tokens, runs) for runs in self._runs[layer]]
        if len(buffer) != sum(lengths):
            raise CorruptRecord(
                f"{self.name}: a layer has {len(buffer)} bytes, expected {sum(lengths)}"
            )
        at = 0
        for part, length in enumerate(lengths):
            self._restore(layer, part, buffer[at : at + length], into[part])
            at += length

    def _restore(self, layer: int, part: int, buffer: memoryview, out: torch.Tensor) -> None:
        """K or V of a layer, `[tokens, channels]`."""
        runs = self._runs[layer][part]
        if self._codes is not None and self._narrow:
            coded, narrow = np.frombuffer(buffer, np.uint8), self._narrow[layer][part]
            self._codes.restore(coded, runs, self._coefficients.centres, narrow, out)
            return
        numbers = self._coefficients.decoded(buffer, len(out), runs)
        directions = self._directions[layer, part, : runs.kept]
        whole = torch.addmm(self._mean[layer, part], numbers, directions)
        limit = torch.finfo(out.dtype).max
        out.copy_(whole.clamp_(-limit, limit))

    def _check(self, layer: int, kv: torch.Tensor) -> None:
        layers, channels = self.fitted_to
        if layer >= layers or kv[0, 0].numel() != channels:
            raise StoreError(of_another_model(self.name, self.fitted_to))


def of_another_model(codec: str, fitted_to: tuple[int, int]) -> str:
    """What is said of a codec whose basis has other layers or channels than the model."""
    layers, channels = fitted_to
    return (
        f"{codec}: its basis has {layers} layers of {channels} channels, the model has others. "
        "Hint: chunkcache fit-basis makes one of this model; leave this codec out until then"
    )


def allocated_bits(variance: np.ndarray, mean_bits: float) -> np.ndarray:
    """Bits of every coefficient, 0 to 8, `mean_bits` on average: each goes where it helps most.

    A bit divides an error by four (reverse water-filling, in whole bits). `variance` falls, and so
    do the bits.
    """
    left = variance.astype(np.float64)
    bits = np.zeros(len(left), np.int64)
    for _ in range(round(mean_bits * len(left))):
        most = int(np.argmax(np.where(bits < MOST_BITS, left, -1.0)))
        bits[most] += 1
        left[most] /= 4.0
    return bits
