"""Numbers rounded to few bits, and their codes, in C: one pass each, in the caller's thread alone,
while other Python threads run. Twins: torch in chunkcache's codecs, bit by bit but
for `restore`.
"""

from __future__ import annotations

import ctypes as c
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache_kernels.compiler import CODES, build_library
from chunkcache_kernels.structs import TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PAGE_TOKENS = 16  # of no meaning here but the widest vector
_LANES = 16
_MOST_COEFFICIENTS = 4096
_TABLE = (9, 256)  # by bits, by code
_COLUMNS, _TILE = 64, 6  # of coefficients.c
_NORM, _LARGEST = 46000.0, 32767.0


class GroupedC(c.Structure):
    """`Grouped` of codes.c."""

    _fields_ = [
        ("coded", c.c_void_p), ("out", c.c_void_p), ("stride", c.c_int64),
        ("rows", c.c_int64), ("channels", c.c_int64), ("group", c.c_int64),
        ("bits", c.c_int32), ("type", c.c_int32),
    ]  # fmt: skip


class CoefficientsC(c.Structure):
    """`Coefficients` of coefficients.c."""

    _fields_ = [
        ("coded", c.c_void_p), ("tables", c.c_void_p), ("runs", c.c_void_p),
        ("numbers", c.c_void_p), ("stride", c.c_int64), ("rows", c.c_int64),
        ("kept", c.c_int64), ("num_runs", c.c_int64),
    ]  # fmt: skip


class RestoredC(c.Structure):
    """`Restored` of coefficients.c."""

    _fields_ = [
        ("of", c.c_void_p), ("scales", c.c_void_p), ("directions", c.c_void_p),
        ("steps", c.c_void_p), ("mean", c.c_void_p), ("narrow", c.c_void_p),
        ("row_steps", c.c_void_p), ("out", c.c_void_p), ("stride", c.c_int64),
        ("channels", c.c_int64), ("pairs", c.c_int64), ("limit", c.c_float), ("type", c.c_int32),
    ]  # fmt: skip


class Runs:
    """Coefficients that have as many bits as their neighbours: pairs of bits and how many."""

    def __init__(self, runs: Sequence[tuple[int, int]]) -> None:
        self.kept = sum(count for _, count in runs)
        self.longest = max((count for _, count in runs), default=0)
        assert self.kept <= _MOST_COEFFICIENTS and all(1 <= bits <= 8 for bits, _ in runs)
        self.pairs = torch.tensor(runs, dtype=torch.int64).view(-1, 2)
        pieces = [count * width for bits, count in runs for width in (8, 4, 2, 1) if bits & width]
        self._row_bits = np.array(pieces, np.int64)

    def packed_bytes(self, rows: int) -> int:
        """Length of the codes of so many rows."""
        return int((-(-rows * self._row_bits // 8)).sum())


class Directions:
    """What coefficients are multiplied by, fp32 `[kept, channels]`, in 16 bits, and the mean.

    Every column has a step of its own, so small that no sum of a product overflows 32 bits.
    """

    def __init__(self, directions: torch.Tensor, mean: torch.Tensor) -> None:
        kept, self.channels = directions.shape
        self.pairs = -(-kept // 2)
        width = -(-self.channels // _COLUMNS) * _COLUMNS
        padded = directions.new_zeros((2 * self.pairs, width))
        padded[:kept, : self.channels] = directions
        self.steps = torch.full((width,), torch.finfo(torch.float32).tiny)
        if kept:
            largest = padded.abs().amax(dim=0) / _LARGEST
            self.steps = torch.maximum(padded.norm(dim=0) / _NORM, largest).maximum(self.steps)
        narrow = (
            (padded / self.steps)
            .round()
            .to(torch.int16)
            .view(self.pairs, 2, width // _COLUMNS, _COLUMNS)
        )
        self.numbers = narrow.permute(2, 0, 3, 1).contiguous()  # [panels, pairs, columns, 2]
        self.mean = torch.nn.functional.pad(mean, (0, width - self.channels))


class Codes:
    """The library. Thread-safe: calls run beside each other.

    Args:
        cache: where it is kept; built at first use.

    Raises:
        NoCompiler: it cannot be built.
    """

    def __init__(self, cache: Path) -> None:
        library = c.CDLL(str(build_library(cache, _PAGE_TOKENS, CODES)))
        pointer, number = c.c_void_p, c.c_int64
        signatures = {
            "chunkcache_from_groups": ([pointer], None),
            "chunkcache_to_groups": (
                [pointer, number, number, number, c.c_int, c.c_float, pointer, pointer], c.c_int
            ),
            "chunkcache_from_centres": ([pointer, pointer], None),
            "chunkcache_to_centres": ([pointer] * 4, None),
            "chunkcache_restore": ([pointer], None),
            "chunkcache_restores": ([], c.c_int),
        }  # fmt: skip
        for name, (arguments, result) in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
        self._library = library
        self.restores = bool(library.chunkcache_restores())  # whether `restore` is there

    # ------------------------------------------------------------ ranges of groups

    def from_groups(self, coded: np.ndarray, out: torch.Tensor, bits: int, group: int) -> None:
        """Decode into `out` `[rows, channels]`, whose rows may lie apart.

        Args:
            coded: uint8, as long as such rows are: lowest numbers and steps (bf16, `[groups,
                channels]`), then the codes.
        """
        assert out.stride(1) == 1 or out.shape[1] == 1
        of = GroupedC(
            coded.ctypes.data, out.data_ptr(), out.stride(0), *out.shape, group, bits,
            TYPES[out.dtype],
        )  # fmt: skip
        self._library.chunkcache_from_groups(c.addressof(of))

    def to_groups(
        self, numbers: torch.Tensor, coded: np.ndarray, bits: int, group: int, largest: float
    ) -> bool:
        """Encode fp32 `[rows, channels]` into `coded`. False: a number is not finite, or what would
        be decoded is not within ± `largest`."""
        assert numbers.is_contiguous() and numbers.dtype is torch.float32
        codes = np.empty(numbers.numel(), np.uint8)
        done: int = self._library.chunkcache_to_groups(
            numbers.data_ptr(), *numbers.shape, group, bits, largest,
            codes.ctypes.data, coded.ctypes.data,
        )  # fmt: skip
        return bool(done)

    # ------------------------------------------------------------ coefficients

    def from_centres(
        self, coded: np.ndarray, rows: int, runs: Runs, centres: torch.Tensor
    ) -> torch.Tensor:
        """fp32 `[rows, kept]`, whose rows lie apart: centre · scale.

        Args:
            coded: uint8: scales (bf16, `[kept]`), then the codes of each run.
            centres: fp32 `[9, 256]`, by bits and code.
        """
        assert centres.shape == _TABLE and centres.dtype is torch.float32
        numbers = torch.empty((rows, runs.kept + _LANES))
        scales = np.zeros(runs.kept + _LANES, np.float32)
        of = self._coefficients(coded, centres, runs, numbers)
        self._library.chunkcache_from_centres(c.addressof(of), scales.ctypes.data)
        return numbers[:, : runs.kept]

    def restore(
        self, coded: np.ndarray, runs: Runs, centres: torch.Tensor, directions: Directions,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """mean + coefficients · directions, see `from_centres`, into `out` `[rows, channels]`,
        whose rows may lie apart. Both are rounded to 16 bits before: off by less than 5e-4 of
        their root mean square.
        """
        assert centres.shape == _TABLE and centres.dtype is torch.float32
        assert directions.pairs == -(-runs.kept // 2)
        assert out.stride(1) == 1 and out.shape[1] == directions.channels
        rows = len(out)
        tiles = -(-rows // _TILE) * _TILE
        numbers = torch.empty((rows, runs.kept + _LANES))
        floats = torch.zeros(runs.kept + _LANES + tiles)
        narrow = torch.empty((tiles, 2 * directions.pairs), dtype=torch.int16)
        of = self._coefficients(coded, centres, runs, numbers)
        call = RestoredC(
            c.addressof(of), floats.data_ptr(), directions.numbers.data_ptr(),
            directions.steps.data_ptr(), directions.mean.data_ptr(), narrow.data_ptr(),
            floats.data_ptr() + 4 * (runs.kept + _LANES), out.data_ptr(), out.stride(0),
            directions.channels, directions.pairs, torch.finfo(out.dtype).max, TYPES[out.dtype],
        )  # fmt: skip
        self._library.chunkcache_restore(c.addressof(call))

    def to_centres(
        self, numbers: torch.Tensor, scales: torch.Tensor, runs: Runs, edges: torch.Tensor,
        coded: np.ndarray,
    ) -> None:  # fmt: skip
        """The codes of each run into `coded`: of a number over its scale how many edges lie below.

        Args:
            numbers: fp32 `[rows, at least kept]`, whose rows may lie apart.
            scales: fp32, at least as many as are kept; none is 0.
            edges: fp32 `[9, 256]`, by bits.
        """
        assert edges.shape == _TABLE and edges.dtype is torch.float32
        assert numbers.stride(1) == 1 and numbers.dtype is scales.dtype is torch.float32
        codes = np.empty(len(numbers) * runs.longest, np.uint8)
        of = self._coefficients(coded, edges, runs, numbers)
        self._library.chunkcache_to_centres(
            c.addressof(of), scales.data_ptr(), codes.ctypes.data, coded.ctypes.data
        )

    @staticmethod
    def _coefficients(
        coded: np.ndarray, tables: torch.Tensor, runs: Runs, numbers: torch.Tensor
    ) -> CoefficientsC:
        return CoefficientsC(
            coded.ctypes.data, tables.data_ptr(), runs.pairs.data_ptr(), numbers.data_ptr(),
            numbers.stride(0), len(numbers), runs.kept, len(runs.pairs),
        )  # fmt: skip
