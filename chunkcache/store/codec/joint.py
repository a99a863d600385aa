"""One basis for K and V of several neighbouring layers together, coefficients for each chunk.

What a layer knows of a token the next one mostly knows too: coded together they take a third fewer
bits for the same error than each for itself (docs/decisions/0029). K and V of every layer are
divided by their spread in the corpus first, so that each is off by a like share of its own. Bits
go, over all groups of layers, to the coefficients that vary most. A group's bytes are cut into as
many slabs as it has layers: none of them can be decoded without the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.errors import ConfigError, CorruptRecord, StoreError
from chunkcache.store.codec.basis import of_another_model, read_tensors, write_tensors
from chunkcache.store.codec.coefficients import (
    MOST_BITS,
    Coefficients,
    coded_bytes,
    lloyd_max,
    runs_of,
    scales_of,
)
from chunkcache_kernels.codes import Runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from chunkcache.chunk import ChunkKV
    from chunkcache.codec_spec import CodecSpec
    from chunkcache_kernels.codes import Codes

_MOST_NUMBERS = 4096  # of a token in a group: a basis has the square of it


@dataclass(frozen=True, slots=True, eq=False)
class JointBasis:
    """Of K and V of every layer, and of groups of `together` layers, the last one maybe smaller."""

    together: int
    mean: torch.Tensor  # float32 `[layers, 2, channels]`
    spread: torch.Tensor  # float32 `[layers, 2]`: what K and V are divided by
    variance: list[torch.Tensor]  # by group, float32 `[numbers]`: of the coefficients, falling
    vectors: list[torch.Tensor]  # by group, float32 `[numbers, numbers]`, a direction is a column


def fit_joint_basis(records: Iterable[ChunkKV], together: int) -> JointBasis:
    """The basis of these chunks, of `together` layers in a group.

    Memory and time do not grow with the number of chunks but the reading.

    Raises:
        StoreError: there is no chunk, one is not like the others, or a group would be too large.
    """
    count, total, squares = 0, torch.empty(0), list[torch.Tensor]()
    for record in records:
        rows = record.kv.flatten(3).double()
        layers, channels = rows.shape[0], rows.shape[3]
        if 2 * channels * min(together, layers) > _MOST_NUMBERS:
            fit = _MOST_NUMBERS // (2 * channels)
            hint = f"Hint: at most {fit}" if fit else "Hint: a codec without layers together"
            raise StoreError(
                f"layers: got {together}, {2 * channels * together} numbers of a token, at most "
                f"{_MOST_NUMBERS} go together. {hint}"
            )
        if not count:
            total = torch.zeros_like(rows[:, :, 0])
            squares = [
                total.new_zeros((2 * channels * len(part),) * 2)
                for part in torch.split(total, together)
            ]  # fmt: skip
        if total.shape != rows[:, :, 0].shape:
            raise StoreError("layers: the chunks are of different models")
        count += record.num_tokens
        total += rows.sum(dim=2)
        for square, part in zip(squares, torch.split(rows, together), strict=True):
            numbers = _by_token(part)
            square += numbers.T @ numbers
    if not count:
        raise StoreError("layers: no chunk to fit them to. Hint: ingest and warm some first")
    return _principal(together, total / count, [square / count for square in squares])


def _principal(together: int, mean: torch.Tensor, squares: Sequence[torch.Tensor]) -> JointBasis:
    channels, spreads, variances, vectors = mean.shape[-1], [], [], []
    for part, square in zip(torch.split(mean, together), squares, strict=True):
        own = part.flatten()
        covariance = square - own[:, None] * own[None, :]
        sums = covariance.diagonal().view(-1, channels).sum(dim=1)
        spread = sums.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        by_number = spread.repeat_interleave(channels)
        variance, directions = torch.linalg.eigh(covariance / by_number[:, None] / by_number)
        spreads.append(spread.view(-1, 2))
        variances.append(variance.flip(-1).clamp_min(0).float())
        vectors.append(directions.flip(-1).float().contiguous())
    return JointBasis(together, mean.float(), torch.cat(spreads).float(), variances, vectors)


def write_joint_basis(basis: JointBasis, folder: Path) -> str:
    """Keep a basis among others, whole or not at all; returns the digest that names it.

    Raises:
        StoreError: it cannot be written.
    """
    tensors = {"together": torch.tensor(basis.together), "mean": basis.mean, "spread": basis.spread}
    for group, (variance, vectors) in enumerate(zip(basis.variance, basis.vectors, strict=True)):
        tensors[f"variance.{group}"] = variance
        tensors[f"vectors.{group}"] = vectors.half()  # off by a thousandth of what is rounded
    return write_tensors(tensors, folder)


def read_joint_basis(folder: Path, digest: str) -> JointBasis:
    """The basis of that name.

    Raises:
        ConfigError: it is not there, is no such basis, or its bytes are not those of its name.
    """
    found = read_tensors(folder, digest)
    try:
        together, mean = int(found["together"]), found["mean"]
        groups = range(-(-len(mean) // together))
        return JointBasis(
            together, mean, found["spread"],
            [found[f"variance.{group}"] for group in groups],
            [found[f"vectors.{group}"].float() for group in groups],
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(
            f"store.codec or store.cold_codec: got file={digest}, that basis is of single layers, "
            "for the codec basis. Hint: chunkcache fit-basis --layers makes one of several"
        ) from error


class JointCodec:
    """See the module, and `BasisCodec`, whose coefficients are rounded in the same way."""

    def __init__(self, spec: CodecSpec, folder: Path, codes: Codes | None = None) -> None:
        self.name = str(spec)
        basis = read_joint_basis(folder, str(dict(spec.parameters)["file"]))
        self.layers_together = basis.together
        self.fitted_to = basis.mean.shape[0], basis.mean.shape[-1]
        lengths = [len(variance) for variance in basis.variance]
        bits = bits_for(torch.cat(basis.variance).numpy(), spec.number("bits"))
        self._runs = [Runs(runs_of(part)) for part in np.split(bits, np.cumsum(lengths)[:-1])]
        self._mean, self._spread = basis.mean, basis.spread
        self._directions = [  # those kept: the first ones
            vectors[:, : runs.kept].contiguous()
            for vectors, runs in zip(basis.vectors, self._runs, strict=True)
        ]
        self._coefficients = Coefficients(codes)

    def encode_layers(self, first: int, kv: torch.Tensor) -> list[bytes]:
        """The slabs of a group, one a layer.

        Args:
            first: the group's first layer.
            kv: of all its layers, `[layers, 2, num_tokens, num_kv_heads, head_dim]` on the CPU.

        Raises:
            StoreError: there is a number in it that this codec cannot code, or it is no whole
                group of the model that the basis was fitted to.
        """
        self._check(first, kv)
        if self.around(first, first + 1) != (first, first + len(kv)):
            raise StoreError(of_another_model(self.name, self.fitted_to))
        group = first // self.layers_together
        rows = kv.flatten(3).float()
        mean, spread = self._scaling(first, len(kv))
        normal = _by_token((rows - mean) / spread)
        numbers = normal @ self._directions[group]
        scales = scales_of(numbers)
        # by the rows too: what is odd may lie in directions that are not kept
        if not bool(scales.isfinite().all() and normal.norm().isfinite()):
            reason = "numbers too large for it" if rows.isfinite().all() else "what is no number"
            raise StoreError(f"{self.name}: the KV has {reason}")
        coded = self._coefficients.coded(numbers, scales, self._runs[group])
        edges = _edges(len(coded), len(kv))
        return [coded[low:high] for low, high in pairwise(edges)]

    def around(self, first: int, end: int) -> tuple[int, int]:
        """First and end of the layers whose slabs are needed for those from `first` to `end`."""
        group = self.layers_together
        return first - first % group, min(-(-end // group) * group, self.fitted_to[0])

    def decode_layers(self, first: int, slabs: Sequence[memoryview], out: torch.Tensor) -> None:
        """Decode layers from `first` on into `out`, as many as it has.

        Args:
            slabs: of the layers `around` them.
            out: contiguous, on the CPU, of the shape and dtype that was encoded.

        Raises:
            CorruptRecord: a group is not what this codec makes.
        """
        self._check(first, out)
        begin, end = self.around(first, first + len(out))
        if len(slabs) != end - begin:
            raise CorruptRecord(f"{self.name}: {len(slabs)} layers of bytes, not {end - begin}")
        for start in range(begin, end, self.layers_together):
            stop = min(start + self.layers_together, end)
            own = slabs[start - begin : stop - begin]
            numbers = self._numbers(start // self.layers_together, own, out.shape[2])
            low, high = max(start, first), min(stop, first + len(out))
            self._restore(start, numbers, low, out[low - first : high - first])

    def _numbers(self, group: int, slabs: Sequence[memoryview], tokens: int) -> torch.Tensor:
        """The coefficients of a group, float32 `[tokens, kept]`."""
        runs = self._runs[group]
        edges = _edges(coded_bytes(tokens, runs), len(slabs))
        expected = [high - low for low, high in pairwise(edges)]
        if [len(slab) for slab in slabs] != expected:
            raise CorruptRecord(
                f"{self.name}: layers have {[len(slab) for slab in slabs]} bytes, "
                f"expected {expected}"
            )
        return self._coefficients.decoded(memoryview(b"".join(slabs)), tokens, runs)

    def _restore(self, start: int, numbers: torch.Tensor, first: int, out: torch.Tensor) -> None:
        """Of a group that begins at `start`, the layers from `first` on."""
        layers, _, tokens = out.shape[:3]
        width = 2 * self.fitted_to[1]
        own = slice((first - start) * width, (first - start + layers) * width)
        rows = numbers @ self._directions[start // self.layers_together][own].T
        mean, spread = self._scaling(first, layers)
        whole = rows.view(tokens, layers, 2, -1).permute(1, 2, 0, 3) * spread + mean
        limit = torch.finfo(out.dtype).max
        out.view(layers, 2, tokens, -1).copy_(whole.clamp_(-limit, limit))

    def _scaling(self, first: int, layers: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = slice(first, first + layers)
        return self._mean[own, :, None], self._spread[own, :, None, None]

    def _check(self, first: int, kv: torch.Tensor) -> None:
        layers, channels = self.fitted_to
        if first + len(kv) > layers or kv[0, 0, 0].numel() != channels:
            raise StoreError(of_another_model(self.name, self.fitted_to))


def bits_for(variance: np.ndarray, mean_bits: float) -> np.ndarray:
    """Bits of every coefficient, 0 to 8, `mean_bits` on average: each goes where it helps most.

    What a bit helps is what a normal distribution of that variance loses less with it. Where the
    variance falls, so do the bits.
    """
    losses = np.array([1.0, *(_loss(lloyd_max(bits)) for bits in range(1, MOST_BITS + 1))])
    gains = (variance.astype(np.float64)[:, None] * -np.diff(losses)).ravel()
    best = np.argsort(-gains, kind="stable")[: round(mean_bits * len(variance))]
    return np.bincount(best // MOST_BITS, minlength=len(variance))


def _loss(centres: torch.Tensor) -> float:
    """Mean square error of a standard normal distribution that is rounded to its best centres."""
    own = centres.double()
    inner = (own[1:] + own[:-1]) / 2
    edges = torch.cat((inner.new_tensor([-torch.inf]), inner, inner.new_tensor([torch.inf])))
    return 1.0 - float((torch.special.ndtr(edges).diff() * own.square()).sum())


def _by_token(rows: torch.Tensor) -> torch.Tensor:
    """`[layers, 2, tokens, channels]` as `[tokens, numbers]`."""
    return rows.permute(2, 0, 1, 3).reshape(rows.shape[2], -1)


def _edges(length: int, parts: int) -> list[int]:
    """Where to cut `length` bytes into parts of nearly the same size."""
    return [length * part // parts for part in range(parts + 1)]
