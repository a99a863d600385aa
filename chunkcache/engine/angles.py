"""A model's own rotary angles, kept apart from the model: in fp32, for any positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

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
        self._cos = self._sin = self._inv_freq.new_empty((0, 2 * self._inv_freq.shape[0]))

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 cos, sin `[n, head_dim]` at int64 positions `[n]`; the table grows as needed."""
        needed = int(positions.max()) + 1 if positions.numel() else 0
        if needed > self._cos.shape[0]:
            size = max(1024, 1 << (needed - 1).bit_length())
            steps = torch.arange(size, device=self._inv_freq.device, dtype=torch.float32)
            angles = torch.outer(steps, self._inv_freq).repeat(1, 2)
            self._cos, self._sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        return self._cos[positions], self._sin[positions]
