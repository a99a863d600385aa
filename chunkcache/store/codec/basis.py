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

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chunkcache.chunk import ChunkKV, ChunkStats
    from chunkcache.codec_spec import CodecSpec

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

    def __init__(self, spec: CodecSpec, folder: Path) -> None:
        self.name = str(spec)
        self._basis = read_basis(folder, str(dict(spec.parameters)["file"]))
        wanted = spec.number("k"), spec.number("v")
        self._bits = [
            [allocated_bits(own.numpy(), mean) for own, mean in zip(layer, wanted, strict=True)]
            for layer in self._basis.variance
        ]
        self._centres = {bits: lloyd_max(bits) for bits in range(1, MOST_BITS + 1)}

    def encode_layer(self, layer: int, kv: torch.Tensor, stats: ChunkStats) -> bytes:
        """See `Codec`."""
        self._check(layer, kv)
        parts = []
        for part, rows in enumerate(kv.flatten(2).float()):
            if not bool(rows.isfinite().all()):
                raise StoreError(f"{self.name}: the KV has what is no number")
            numbers = (rows - self._basis.mean[layer, part]) @ self._basis.vectors[layer, part]
            scales = numbers.square().mean(dim=0).sqrt().to(torch.bfloat16).float()
            if not bool(scales.isfinite().all()):
                raise StoreError(f"{self.name}: the KV has numbers too large for it")
            normal = numbers / scales.clamp_min(torch.finfo(torch.float32).tiny)
            runs = runs_of(self._bits[layer][part])
            parts.append(bfloat16_bytes(scales[: sum(count for _, count in runs)]))
            first = 0
            for bits, count in runs:
                centres = self._centres[bits]
                edges = (centres[1:] + centres[:-1]) / 2
                codes = torch.bucketize(normal[:, first : first + count].contiguous(), edges)
                parts.append(pack(codes.to(torch.uint8).reshape(-1).numpy(), bits))
                first += count
        return b"".join(parts)

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """See `Codec`."""
        self._check(layer, out)
        tokens = out.shape[1]
        into = out.view(2, tokens, -1)
        expected = sum(_coded_bytes(bits, tokens) for bits in self._bits[layer])
        if len(buffer) != expected:
            raise CorruptRecord(
                f"{self.name}: a layer has {len(buffer)} bytes, expected {expected}"
            )
        limit, at = torch.finfo(out.dtype).max, 0
        for part in (0, 1):
            runs = runs_of(self._bits[layer][part])
            kept = sum(count for _, count in runs)
            scales = bfloat16_of(buffer[at : at + 2 * kept])
            at += 2 * kept
            numbers, first = torch.empty((tokens, kept)), 0
            for bits, count in runs:
                length = packed_bytes(tokens * count, bits)
                codes = torch.from_numpy(unpack(buffer[at : at + length], tokens * count, bits))
                numbers[:, first : first + count] = self._centres[bits][codes.int()].view(-1, count)
                at, first = at + length, first + count
            numbers *= scales
            directions = self._basis.vectors[layer, part, :, :kept]
            whole = torch.addmm(self._basis.mean[layer, part], numbers, directions.T)
            into[part] = whole.clamp_(-limit, limit)

    def _check(self, layer: int, kv: torch.Tensor) -> None:
        layers, _, channels = self._basis.mean.shape
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


def _coded_bytes(bits: np.ndarray, tokens: int) -> int:
    return sum(2 * count + packed_bytes(tokens * count, b) for b, count in runs_of(bits))
