"""Whole numbers made on the host, for the device: small arrays in one copy that nobody waits for.

A copy out of ordinary memory waits until the device has done all that it was given before; one out
of pinned memory is queued. Torch keeps the pinned memory until the copy is over, and uses it again.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALIGNED = 4  # int32 numbers: Triton compiles another kernel for pointers that are not at 16 bytes
_LARGEST = np.iinfo(np.int32).max


def pins(device: torch.device) -> bool:
    """Whether copies to a device are queued if they come out of pinned memory."""
    return device.type not in {"cpu", "mps"}


def runs_triton(device: torch.device) -> bool:
    """Whether Triton makes kernels for it: a GPU of compute capability 8.0 at least."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def sent(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays as int32 on the device, in one copy; their numbers must be in int32."""
    sizes = [-(-array.size // _ALIGNED) * _ALIGNED for array in arrays.values()]
    packed = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=pins(device))
    for part, array in zip(torch.split(packed, sizes), arrays.values(), strict=True):
        assert array.dtype.kind in "iu" and (not array.size or array.max() <= _LARGEST)
        part[: array.size].numpy()[:] = array.reshape(-1)  # which may run backwards
    moved = torch.split(packed.to(device, non_blocking=True), sizes)
    return {
        name: part[: array.size].view(array.shape)
        for part, (name, array) in zip(moved, arrays.items(), strict=True)
    }


def index_of(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """int64 like `numbers` on the device, to index with."""
    return sent({"index": numbers}, device)["index"].long()


def rows_of(x: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    """Rows of a tensor at increasing places: a view where they lie side by side."""
    if len(index) and index[-1] - index[0] == len(index) - 1:
        return x[int(index[0]) : int(index[-1]) + 1]
    return x[index_of(index, x.device)]
