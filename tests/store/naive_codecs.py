"""Codecs number by number, as their documents say: the slow twins."""

from __future__ import annotations

import math
import struct

import numpy as np

from chunkcache.chunk import ChunkStats

WIDTHS = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}


def bfloat16_below(value: np.float32) -> np.float32:
    """The largest bfloat16 that is not above, by its bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    cut = bits & 0xFFFF0000
    if bits != cut and value < 0:
        cut += 0x10000  # away from zero
    return np.float32(struct.unpack("<f", struct.pack("<I", cut))[0])


def bfloat16_octets(value: np.float32) -> bytes:
    return struct.pack("<f", value)[2:]


def pack(codes: list[int], bits: int) -> bytes:
    packed, shift = b"", 0
    for width in WIDTHS[bits]:
        length = math.ceil(len(codes) * width / 8)
        octets = [0] * length
        for number, code in enumerate(codes):
            piece = (code >> shift) % (1 << width)
            octets[number % length] += piece << (number // length * width)
        packed += bytes(octets)
        shift += width
    return packed


def unpack(packed: bytes, count: int, bits: int) -> list[int]:
    codes, shift, at = [0] * count, 0, 0
    for width in WIDTHS[bits]:
        length = math.ceil(count * width / 8)
        for number in range(count):
            octet = packed[at + number % length]
            codes[number] += (octet >> (number // length * width)) % (1 << width) << shift
        shift, at = shift + width, at + length
    return codes


def bits_encode(numbers: np.ndarray, bits: int, group: int) -> bytes:
    rows, channels = numbers.shape
    levels = np.float32(2**bits - 1)
    lowest, steps, codes = b"", b"", np.zeros((rows, channels), int)
    for first in range(0, rows, group):
        for channel in range(channels):
            own = numbers[first : first + group, channel]
            low = bfloat16_below(own.min())
            step = -bfloat16_below(-(own.max() - low) / levels)
            lowest += bfloat16_octets(low)
            steps += bfloat16_octets(step)
            for row, number in enumerate(own, start=first):
                places = (number - low) / step if step else np.float32(0)
                codes[row, channel] = min(int(levels), max(0, int(np.round(places))))
    return lowest + steps + pack(codes.reshape(-1).tolist(), bits)


def _bfloat16s(octets: bytes) -> np.ndarray:
    pairs = [octets[i : i + 2] for i in range(0, len(octets), 2)]
    return np.array([struct.unpack("<f", b"\0\0" + pair)[0] for pair in pairs], np.float32)


def group_decode(coded: bytes, rows: int, channels: int, bits: int, group: int) -> np.ndarray:
    count = math.ceil(rows / group) * channels
    lowest, steps = _bfloat16s(coded[: 2 * count]), _bfloat16s(coded[2 * count : 4 * count])
    codes = unpack(coded[4 * count :], rows * channels, bits)
    numbers = np.zeros((rows, channels), np.float32)
    for row in range(rows):
        for channel in range(channels):
            at = row // group * channels + channel
            numbers[row, channel] = (
                np.float32(codes[row * channels + channel]) * steps[at] + lowest[at]
            )
    return numbers


def range_of_groups(numbers: np.ndarray, group: int) -> np.ndarray:
    """Of every number: how far the numbers of its group lie apart."""
    ranges = np.zeros_like(numbers)
    for first in range(0, len(numbers), group):
        own = numbers[first : first + group]
        ranges[first : first + group] = own.max(axis=0) - own.min(axis=0)
    return ranges


def mikv_encode(
    kv: np.ndarray, stats: ChunkStats, share: float, high: int, low: int, group: int
) -> bytes:
    tokens = kv.shape[1]
    order = sorted(range(tokens), key=lambda t: (-stats.token_inter[t], t))
    matters = [t in order[: math.ceil(share * tokens)] for t in range(tokens)]
    marks = bytearray(math.ceil(tokens / 8))
    for token, does in enumerate(matters):
        marks[token // 8] |= does << (7 - token % 8)
    coded = bytes(marks)
    for part in kv.reshape(2, tokens, -1):
        coded += bits_encode(part[[t for t in range(tokens) if matters[t]]], high, group)
        rest = part[[t for t in range(tokens) if not matters[t]]]
        coded += bits_encode(rest, low, group)
    return coded


def gear_decode(
    coded: bytes, shape: tuple[int, int, int], *, bits: int, rank: int, sparse: float, group: int
) -> np.ndarray:
    tokens, heads, dim = shape
    rank, at, parts = min(rank, tokens, dim), 0, []

    def taken(length: int) -> bytes:
        nonlocal at
        at += length
        return coded[at - length : at]

    for by_token in (False, True):
        rows, columns = (heads * dim, tokens) if by_token else (tokens, heads * dim)
        kept = min(math.ceil(rows * sparse / 2), (rows - 1) // 2)
        ranges = 4 * math.ceil(rows / group) * columns
        length = ranges + len(pack([0] * (rows * columns), bits))
        whole = group_decode(taken(length), rows, columns, bits, group)
        places = np.frombuffer(taken(4 * kept * columns), "<u2").reshape(2 * kept, columns)
        values = _bfloat16s(taken(4 * kept * columns)).reshape(2 * kept, columns)
        left = _bfloat16s(taken(2 * heads * tokens * rank)).reshape(heads, tokens, rank)
        right = _bfloat16s(taken(2 * heads * rank * dim)).reshape(heads, rank, dim)
        if by_token:
            whole = whole.T.copy()
        for head in range(heads):
            whole[:, head * dim : (head + 1) * dim] += left[head] @ right[head]
        for nth in range(2 * kept):
            for column in range(columns):
                place = int(places[nth, column]), column
                whole[place[::-1] if by_token else place] = values[nth, column]
        parts.append(whole.reshape(shape))
    assert at == len(coded)
    return np.stack(parts)
