"""What a codec is. To add one, write a class with these and list it in `codec/__init__.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


class Codec(Protocol):
    """KV of one layer ⇄ bytes. Stateless and thread-safe."""

    name: str  # written into every record; a codec that changes its bytes changes its name

    def encode_layer(self, kv: torch.Tensor) -> bytes:
        """Bytes of one layer's KV, `[2, num_tokens, num_kv_heads, head_dim]` on the CPU."""
        ...

    def decode_layers(self, buffers: Iterable[memoryview], out: torch.Tensor) -> None:
        """Decode a run of layers into `out`, `[layers, 2, num_tokens, num_kv_heads, head_dim]`.

        `out` is a contiguous CPU tensor of the encoded dtype. One buffer a layer; each is valid
        only until the next one is asked for.

        Raises:
            CorruptRecord: a buffer is not what this codec makes for such a layer.
        """
        ...
