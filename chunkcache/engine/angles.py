"""A model's own rotary angles, kept apart from the model: in fp32, for any positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from chunkcache_kernels import Rotary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RotaryAngles:
    """cos and sin of the model's own rotary embedding, fp32, for any positions.

    Taken from a fresh instance of the model's rotary module, because `model.to(bfloat16)` rounds
    the frequencies of the one inside the model.
    """

    def __init__(self, rotary: torch.nn.Module, config: PreTrainedConfig, device: torch.device):
        fresh: Any = type(rotary)(config=config)
        self._inv_freq = fresh.inv_freq.to(device=device, dtype=torch.float32)
        self._scaling = float(getattr(fresh, "attention_scaling", 1.0))
        nothing = self._inv_freq.new_empty((0, 2 * self._inv_freq.shape[0]))
        self._table = Rotary(nothing, nothing)

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are turned."""
        return 2 * int(self._inv_freq.shape[0])

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 cos, sin `[n, head_dim]` at int64 positions `[n]`; the table grows as needed."""
        table = self.table(int(positions.max()) + 1 if positions.numel() else 0)
        return table.at(positions)

    def table(self, num_positions: int) -> Rotary:
        """The angles of at least so many positions, from 0 on."""
        if num_positions > self._table.cos.shape[0]:
            size = max(1024, 1 << (num_positions - 1).bit_length())
            # in fp32 an angle of 1e5 is off by 4e-3: two turned by the same distance would differ
            steps = torch.arange(size, device=self._inv_freq.device, dtype=torch.float64)
            angles = torch.outer(steps, self._inv_freq.double())
            parts = (angles.cos() * self._scaling, angles.sin() * self._scaling)
            self._table = Rotary(*(part.float().repeat(1, 2) for part in parts))
        return self._table
