"""Pages of 4 bits, in torch: how near they are, which byte has which number, what is left over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chunkcache_kernels import Arena, Segment, fours, portable

PAGE, DIM, HEADS = 8, 16, 2


def drawn(tokens: int) -> torch.Tensor:
    """`[1, tokens, heads, dim]`: channels of all sizes, a constant one, one far from 0."""
    made = torch.Generator().manual_seed(tokens)
    x = torch.randn(1, tokens, HEADS, DIM, generator=made) * torch.logspace(-4, 3, DIM)
    x[..., 1], x[..., 2] = -3.7, x[..., 2] + 900.0
    return x


def arena_of(keys: torch.Tensor, values: torch.Tensor, pages: np.ndarray) -> Arena:
    size = 1, 5, HEADS, DIM, PAGE
    arena = Arena.empty(*size, dtype=fours.PAGE_TYPE, device=torch.device("cpu"))
    for part in (arena.key_scales, arena.value_scales):
        assert part is not None
        part.fill_(torch.nan)
    arena.write_chunk(pages, keys, values)
    return arena


@pytest.mark.parametrize("tokens", [1, 7, 8, 19])
def test_no_number_is_off_by_more_than_half_a_step_of_its_page(tokens: int) -> None:
    keys, values = drawn(tokens), drawn(tokens + 1)[:, 1:]
    pages = np.array([3, 0, 4][: -(-tokens // PAGE)])
    arena = arena_of(keys, values, pages)
    assert arena.page_tokens == PAGE
    assert arena.page_bytes == HEADS * DIM * (PAGE + 8), "half a byte each, and ranges"
    for read, given in zip(arena.read_rows(0, pages), (keys[0], values[0]), strict=True):
        for first in range(0, tokens, PAGE):
            own = given[first : first + PAGE]
            # of the tokens there are: a short page has no zeros that would widen its ranges
            width = own.amax(0) - own.amin(0)
            step = (width + 2**-7 * own.abs().amax(0)) / 15 * (1 + 2**-7)
            off = (read[first : first + PAGE][: len(own)] - own).abs()
            assert bool((off <= step / 2 + 2**-22 * own.abs()).all())


def test_eight_neighbours_share_a_word_channels_of_keys_and_tokens_of_values() -> None:
    made = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (2, 1, PAGE, HEADS, DIM), generator=made)
    codes[:, :, 0], codes[:, :, 1] = 0, 15  # so that numbers are their codes
    keys, values = codes.float()
    arena = arena_of(keys, values, np.array([2]))
    assert arena.keys.shape == (1, 5, HEADS, PAGE, DIM // 2)
    assert arena.values.shape == (1, 5, HEADS, DIM, PAGE // 2)
    for kept, given in (
        (arena.keys[0, 2, 1, 3], codes[0, 0, 3, 1]),
        (arena.values[0, 2, 1, 5], codes[1, 0, :, 1, 5]),
    ):
        words = np.frombuffer(kept.numpy().tobytes(), "<u4")
        for word, numbers in zip(words, given.view(-1, 8).tolist(), strict=True):
            # what a kernel does: a shift and a mask for two neighbours, in halves of 16 bits
            pairs = [int(word) >> 4 * i & 0x000F000F for i in range(4)]
            assert [n for pair in pairs for n in (pair & 0xFFFF, pair >> 16)] == numbers


def test_the_twin_gathers_what_is_read_page_by_page() -> None:
    pages = np.array([3, 0, 4], dtype=np.int32)
    arena = arena_of(drawn(19), drawn(20)[:, 1:], pages.astype(np.int64))
    index = np.array([0, 1, 6, 9, 18, 17])
    segment = Segment.of_chunk(0, pages, PAGE, 5, 0, 19)
    keys, values = portable._gather(arena, 0, segment, index, values=True)
    assert values is not None
    whole = arena.read_rows(0, pages.astype(np.int64))
    assert torch.equal(keys.permute(2, 0, 1), whole[0][index])
    assert torch.equal(values.transpose(0, 1), whole[1][index])
    assert portable._gather(arena, 0, segment, index, values=False)[1] is None


@pytest.mark.parametrize(("dim", "tokens"), [(12, 8), (8, 12)])
def test_pages_of_broken_words_are_refused(dim: int, tokens: int) -> None:
    with pytest.raises(AssertionError, match="share a word"):
        Arena.empty(1, 1, 1, dim, tokens, dtype=fours.PAGE_TYPE, device=torch.device("cpu"))
