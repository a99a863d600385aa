"""What a codec is. To add one, write a class with these, list it in `codec/__init__.py`, and give
it a name and limits of its parameters in `chunkcache/codec_spec.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

    from chunkcache.chunk import ChunkStats
    from chunkcache.store.codec.joint import JointCodec


class LayerCodec(Protocol):
    """KV of one layer ⇄ bytes, each layer by itself. Immutable and thread-safe."""

    name: str  # with all parameters; in every record. A codec that changes its bytes changes it

    def encode_layer(self, layer: int, kv: torch.Tensor, stats: ChunkStats) -> bytes:
        """Bytes of one layer's KV, `[2, num_tokens, num_kv_heads, head_dim]` on the CPU.

        Args:
            layer: which one, from 0.
            stats: of the chunk; what says which of its tokens matter.

        Raises:
            StoreError: there is a number in it that this codec cannot code.
        """
        ...

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        """Decode into `out`, a contiguous CPU tensor of the shape and dtype that was encoded.

        Raises:
            CorruptRecord: the buffer is not what this codec makes for such a layer.
        """
        ...


# what goes through either is in `codec/layers.py`
Codec: TypeAlias = "LayerCodec | JointCodec"
