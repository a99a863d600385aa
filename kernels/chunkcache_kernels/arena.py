"""Pages of KV and the segments a sequence is made of.

A page holds `page_tokens` tokens of all layers. Its keys lie channel by channel, `[heads, dim,
tokens]`, so that one product gives the scores of a whole page; its values token by token. Keys are
rotated to their place in their own *segment*: a chunk's to the place in the chunk, a request's own
rows to the place in the prompt (their segment begins at 0). A query at position p looks at a
segment that begins at s turned to p - s; RoPE is relative, so the scores are those of p and the
key's true position, and a chunk's pages serve any position without being copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from chunkcache_kernels import fours
from chunkcache_kernels.sending import index_of

HIDDEN = np.iinfo(np.int32).max  # the position of a key that no row may see


@dataclass(frozen=True, slots=True, eq=False)
class Arena:
    """Pages of one number type: `keys` `[layers, pages, heads, dim, page_tokens]`, `values`
    `[layers, pages, heads, page_tokens, dim]`.

    int8 pages have fp32 scales: of keys one a channel of a page, `[layers, pages, heads, dim]`
    (K's channels differ by more than its tokens do), of values one a token, `[layers, pages, heads,
    page_tokens]` (KIVI, arXiv 2402.02750, §3).

    uint8 pages have numbers of 4 bits (`fours.py`), keys `[layers, pages, heads, page_tokens, dim /
    2]` and values `[layers, pages, heads, dim, page_tokens / 2]`. Their scales are ranges in bf16,
    of keys and of values one a channel of a page: `[layers, pages, heads, 2, dim]`, lowest numbers
    and steps.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None

    @classmethod
    def empty(
        cls,
        num_layers: int,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        page_tokens: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Arena:
        """Pages that nobody has written. Cost: address space; memory comes with the first write."""
        keys = (num_layers, num_pages, num_kv_heads, head_dim, page_tokens)
        values = (num_layers, num_pages, num_kv_heads, page_tokens, head_dim)
        if dtype is fours.PAGE_TYPE:
            assert head_dim % fours.IN_WORD == page_tokens % fours.IN_WORD == 0, (
                "eight numbers share a word"
            )
            halves = (*values[:-1], head_dim // 2), (*keys[:-1], page_tokens // 2)
            ranges = (*keys[:-2], 2, head_dim)
            return cls(
                *(torch.empty(shape, dtype=dtype, device=device) for shape in halves),
                *(torch.empty(ranges, dtype=torch.bfloat16, device=device) for _ in halves),
            )
        pages = [torch.empty(shape, dtype=dtype, device=device) for shape in (keys, values)]
        if dtype is not torch.int8:
            return cls(*pages)
        return cls(*pages, *(torch.empty(shape[:-1], device=device) for shape in (keys, values)))

    @property
    def num_pages(self) -> int:
        """How many pages there are."""
        return self.keys.shape[1]

    @property
    def page_tokens(self) -> int:
        """Tokens in a page."""
        by_token = self.keys if self.keys.dtype is fours.PAGE_TYPE else self.values
        return by_token.shape[3]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        by_channel = self.values if self.keys.dtype is fours.PAGE_TYPE else self.keys
        return by_channel.shape[3]

    @property
    def page_bytes(self) -> int:
        """Bytes of a page over all layers, scales included."""
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        shapes = [(p.shape, p.itemsize) for p in parts if p is not None]
        return sum(shape[0] * shape[2:].numel() * size for shape, size in shapes)

    def write_chunk(
        self, pages: np.ndarray, keys: torch.Tensor, values: torch.Tensor, first: int = 0
    ) -> None:
        """Write some layers of a chunk to its pages, whole pages at a time.

        Args:
            pages: int64 `[n]`, n = ceil(tokens / page_tokens).
            keys, values: `[layers, tokens, heads, dim]`; keys rotated to their place in the chunk.
            first: the layer they begin with.

        What is left of the last page becomes 0; of 4 bits the last token again, which widens no
        range. Cost: one pass over the bytes.
        """
        where = index_of(pages, self.keys.device)
        spare = len(pages) * self.page_tokens - keys.shape[1]
        layers = slice(first, first + len(keys))
        for source, target, scales, is_keys in (
            (keys, self.keys, self.key_scales, True),
            (values, self.values, self.value_scales, False),
        ):
            is_fours = target.dtype is fours.PAGE_TYPE
            by_channel = is_keys != is_fours
            if is_fours:
                padded = torch.cat([source, source[:, -1:].expand(-1, spare, -1, -1)], dim=1)
            else:
                padded = torch.nn.functional.pad(source, (0, 0, 0, 0, 0, spare))
            shape = (source.shape[0], len(pages), self.page_tokens, *source.shape[2:])
            paged = padded.reshape(shape).permute(
                (0, 1, 3, 4, 2) if by_channel else (0, 1, 3, 2, 4)
            )
            if scales is None:
                target[layers, where] = paged.to(target.dtype)
            elif is_fours:
                tokens = -1 if by_channel else -2
                target[layers, where], scales[layers, where] = fours.packed(paged, tokens)
            else:
                target[layers, where], scales[layers, where] = rounded(paged)

    def read_rows(self, layer: int, pages: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """K (as it lies, rotated) and V of whole pages in one layer, `[tokens, heads, dim]`."""
        where = index_of(pages, self.keys.device)
        keys, values = self.keys[layer, where], self.values[layer, where]
        if self.key_scales is not None and self.value_scales is not None:
            ranges = self.key_scales[layer, where], self.value_scales[layer, where]
            if keys.dtype is fours.PAGE_TYPE:
                keys = fours.read(keys, ranges[0], -2).mT
                values = fours.read(values, ranges[1], -1).mT
            else:
                keys, values = keys * ranges[0][..., None], values * ranges[1][..., None]
        return keys.permute(0, 3, 1, 2).flatten(0, 1), values.permute(0, 2, 1, 3).flatten(0, 1)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 like `x` and fp32 scales without its last axis: symmetric, by the largest number."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1).clamp(min=torch.finfo(torch.float32).tiny) / 127.0
    return (wide / scales[..., None]).round().to(torch.int8), scales


@dataclass(slots=True, eq=False)
class Segment:
    """A run of pages that one sequence reads: which, turned from where, and what it may see.

    `pages` int32 `[n]` of `arena` (an index); keys are rotated to their position minus `begin`;
    `key_positions` int32 `[n · page_tokens]` says where each key stands in the prompt, `HIDDEN` for
    one that is replaced or not written.
    """

    arena: int
    pages: np.ndarray
    begin: int
    key_positions: np.ndarray

    @classmethod
    def of_chunk(
        cls, arena: int, pages: np.ndarray, page_tokens: int, begin: int, first: int, end: int
    ) -> Segment:
        """Rows `first..end` of a chunk whose row 0 stands at position `begin`."""
        positions = np.arange(begin, begin + len(pages) * page_tokens, dtype=np.int32)
        positions[:first] = HIDDEN
        positions[end:] = HIDDEN
        return cls(arena, pages, begin, positions)

    def hide(self, positions: np.ndarray) -> None:
        """Let no row see the keys at these positions any more; others replace them."""
        self.key_positions[np.isin(self.key_positions, positions)] = HIDDEN
