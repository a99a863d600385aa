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
from chunkcache.store.codec.groups import bfloat16_bytes, bfloat16_of, pack, packed_bytes, unpack
from chunkcache_kernels.codes import Directions, Runs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chunkcache.chunk import ChunkKV, ChunkStats
    from chunkcache.codec_spec import CodecSpec
    from chunkcache_kernels.codes import Codes

MOST_BITS = 8
_MOST_CHANNELS = 4096
_LLOYD_ROUNDS = 300


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
    """See the module. Coefficients are rounded as Lloyd and Max would for a normal distribution.

    A coefficient's scale is its root mean square in the chunk, in bfloat16. Those without bits are
    left at the corpus's mean.
    """

    def __init__(self, spec: CodecSpec, folder: Path, codes: Codes | None = None) -> None:
        self.name = str(spec)
        basis = read_basis(folder, str(dict(spec.parameters)["file"]))
        wanted = spec.number("k"), spec.number("v")
        self._mean = basis.mean
        self._directions = basis.vectors.mT.contiguous()  # a row is one: as decoding reads them
        self._runs = [
            [
                Runs(runs_of(allocated_bits(own.numpy(), mean)))
                for own, mean in zip(layer, wanted, strict=True)
            ]
            for layer in basis.variance
        ]
        self._centres = torch.zeros((MOST_BITS + 1, 1 << MOST_BITS))
        self._edges = torch.full_like(self._centres, torch.inf)
        for bits in range(1, MOST_BITS + 1):
            centres = lloyd_max(bits)
            self._centres[bits, : 1 << bits] = centres
            self._edges[bits, : (1 << bits) - 1] = (centres[1:] + centres[:-1]) / 2
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
            scales = numbers.square().mean(dim=0).sqrt().to(torch.bfloat16).float()
            if not bool(scales.isfinite().all()):  # one odd number makes all of them so
                reason = (
                    "numbers too large for it" if rows.isfinite().all() else "what is no number"
                )
                raise StoreError(f"{self.name}: the KV has {reason}")
            runs = self._runs[layer][part]
            parts.append(bfloat16_bytes(scales[: runs.kept]))
            scales.clamp_min_(torch.finfo(torch.float32).tiny)
            parts.append(self._coded(numbers, scales, runs))
        return b"".join(parts)

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """See `Codec`."""
        self._check(layer, out)
        tokens = out.shape[1]
        into = out.view(2, tokens, -1)
        lengths = [2 * runs.kept + runs.packed_bytes(tokens) for runs in self._runs[layer]]
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
            self._codes.restore(coded, runs, self._centres, narrow, out)
            return
        numbers = self._decoded(buffer, len(out), runs)
        directions = self._directions[layer, part, : runs.kept]
        whole = torch.addmm(self._mean[layer, part], numbers, directions)
        limit = torch.finfo(out.dtype).max
        out.copy_(whole.clamp_(-limit, limit))

    def _coded(self, numbers: torch.Tensor, scales: torch.Tensor, runs: Runs) -> bytes:
        """The codes of each run, packed."""
        if self._codes is not None:
            coded = np.empty(runs.packed_bytes(len(numbers)), np.uint8)
            self._codes.to_centres(numbers, scales, runs, self._edges, coded)
            return coded.tobytes()
        normal, parts, first = numbers / scales, [], 0
        for bits, count in runs.pairs.tolist():
            edges = self._edges[bits, : (1 << bits) - 1]
            codes = torch.bucketize(normal[:, first : first + count].contiguous(), edges)
            parts.append(pack(codes.to(torch.uint8).reshape(-1).numpy(), bits))
            first += count
        return b"".join(parts)

    def _decoded(self, buffer: memoryview, tokens: int, runs: Runs) -> torch.Tensor:
        """Coefficients, float32 `[tokens, kept]`."""
        if self._codes is not None:
            coded = np.frombuffer(buffer, np.uint8)
            return self._codes.from_centres(coded, tokens, runs, self._centres)
        at, first = 2 * runs.kept, 0
        scales, numbers = bfloat16_of(buffer[:at]), torch.empty((tokens, runs.kept))
        for bits, count in runs.pairs.tolist():
            length = packed_bytes(tokens * count, bits)
            codes = unpack(buffer[at : at + length], tokens * count, bits)
            centres = self._centres[bits][torch.from_numpy(codes).int()]
            numbers[:, first : first + count] = centres.view(-1, count)
            at, first = at + length, first + count
        return numbers.mul_(scales)

    def _check(self, layer: int, kv: torch.Tensor) -> None:
        layers, _, channels = self._mean.shape
        if layer >= layers or kv[0, 0].numel() != channels:
            raise StoreError(
                f"{self.name}: its basis has {layers} layers of {channels} channels, the model "
                "has others. Hint: fit one to this model"
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


def lloyd_max(bits: int) -> torch.Tensor:
    """The 2^bits centres that lose least of a standard normal distribution (Lloyd 1982, Max 1960).

    From quantiles of three times its variance, which they come to for many bits, by Lloyd's rule.
    """
    count = 1 << bits
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    centres: torch.Tensor = 3**0.5 * torch.special.ndtri(places)
    for _ in range(_LLOYD_ROUNDS):
        inner = (centres[1:] + centres[:-1]) / 2
        edges = torch.cat((inner.new_tensor([-torch.inf]), inner, inner.new_tensor([torch.inf])))
        density = torch.exp(-edges.square() / 2) / (2 * torch.pi) ** 0.5
        mass = torch.special.ndtr(edges).diff()
        centres = -density.diff() / mass
    return centres.float()


def runs_of(bits: np.ndarray) -> list[tuple[int, int]]:
    """Bits and number of coefficients, for all that have as many; those with none left out."""
    return [(b, int((bits == b).sum())) for b in range(MOST_BITS, 0, -1) if (bits == b).any()]
