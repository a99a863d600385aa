"""A model's own rotary angles, kept apart from the model: in fp32, for any positions."""

from __future__ import annotations

import torch

from chunkcache_kernels import Rotary


class RotaryAngles:
    """cos and sin of position × frequency, fp32, for any positions.

    Args:
        frequencies: fp32 `[pairs]`, of the pairs of channels in the kernels' order.
        scale: multiplies cos and sin.
    """

    def __init__(self, frequencies: torch.Tensor, scale: float = 1.0) -> None:
        self.frequencies = frequencies
        self._scaling = scale
        nothing = frequencies.new_empty((0, self.rotary_dim))
        self._tables = [Rotary(nothing, nothing)]  # the last is the longest

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are turned."""
        return 2 * int(self.frequencies.shape[0])

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 cos, sin `[n, rotary_dim]` at int64 positions `[n]`; the table grows as needed."""
        table = self.table(int(positions.max()) + 1 if positions.numel() else 0)
        return table.at(positions)

    def table(self, num_positions: int) -> Rotary:
        """The angles of at least so many positions, from 0 on; the same table for all of a step."""
        table = self._tables[-1]
        if num_positions > table.cos.shape[0]:
            size = max(1024, 1 << (num_positions - 1).bit_length())
            # in fp32 an angle of 1e5 is off by 4e-3: two turned by the same distance would differ
            steps = torch.arange(size, device=self.frequencies.device, dtype=torch.float64)
            angles = torch.outer(steps, self.frequencies.double())
            parts = (angles.cos() * self._scaling, angles.sin() * self._scaling)
            table = Rotary(*(part.float().repeat(1, 2) for part in parts))
            if table.cos.device.type == "cuda":
                # made on one stream, read on others: whole before anybody sees it, and the shorter
                # ones are kept for what was queued with them (together no longer than this one)
                torch.cuda.current_stream(table.cos.device).synchronize()
                self._tables.append(table)
            else:
                self._tables = [table]
        return table
