/* Numbers rounded to few bits ⇄ their codes, packed. Called by any thread, each for itself. Twins:
 * chunkcache/store/codec/groups.py and basis.py, bit by bit: built without contraction.
 *
 * Codes are cut into pieces of 8, 4, 2 and 1 bits. Of a width, byte j of n has the pieces number j,
 * j + n, j + 2n, …, the first one lowest. */
#include "codes.h"

#define BLOCK 1024 /* channels in ranges at a time */

typedef struct {
    const uint8_t *coded; /* lowest and steps, bf16 [groups][channels] each, then codes */
    void *out;            /* [rows][channels] */
    int64_t stride;       /* of rows of `out`, in numbers */
    int64_t rows, channels, group;
    int32_t bits, type;
} Grouped;

typedef uint64_t Octets __attribute__((aligned(1), may_alias));

/* Pieces of bytes, moved to another place in theirs, eight bytes at a time: what leaves a byte is
 * masked away. */
INLINE void add_pieces(const uint8_t *restrict from, int64_t count, int mask, int down, int up,
                       uint8_t *restrict to) {
    const uint64_t every = 0x0101010101010101u * (uint64_t)mask;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        *(Octets *)(to + i) |= (*(const Octets *)(from + i) >> down & every) << up;
    for (; i < count; i++) to[i] |= (uint8_t)((from[i] >> down & mask) << up);
}

void chunkcache_unpack(const uint8_t *packed, int64_t count, int bits, int64_t first, int64_t wanted,
                   uint8_t *restrict to) {
    memset(to, 0, (size_t)wanted);
    for (int width = 8, shift = 0; width; width /= 2) {
        if (!(bits & width)) continue;
        const int64_t length = packed_bytes(count, width);
        const int mask = (1 << width) - 1;
        int64_t at = first, done = 0;
        int down = 0;
        for (; at >= length; at -= length) down += width;
        for (; done < wanted; at = 0, down += width) {
            const int64_t run = least(wanted - done, length - at);
            add_pieces(packed + at, run, mask, down, shift, to + done);
            done += run;
        }
        packed += length;
        shift += width;
    }
}

uint8_t *chunkcache_pack(const uint8_t *restrict codes, int64_t count, int bits, uint8_t *restrict to) {
    for (int width = 8, shift = 0; width; width /= 2) {
        if (!(bits & width)) continue;
        const int64_t length = packed_bytes(count, width);
        const int mask = (1 << width) - 1;
        memset(to, 0, (size_t)length);
        int up = 0;
        for (int64_t first = 0; first < count; first += length, up += width)
            add_pieces(codes + first, least(count - first, length), mask, shift, up, to);
        to += length;
        shift += width;
    }
    return to;
}

/* ---------------------------------------------------------------- ranges of groups */

INLINE void row_of_group(void *to, const uint8_t *restrict codes, const float *restrict lowest,
                         const float *restrict step, int64_t count, int type) {
    if (type == F16) {
        _Float16 *restrict out = to;
        for (int64_t i = 0; i < count; i++) out[i] = (_Float16)((float)codes[i] * step[i] + lowest[i]);
    } else if (type == BF16) {
        uint16_t *restrict out = to;
        for (int64_t i = 0; i < count; i++)
            store_one(out, i, BF16, (float)codes[i] * step[i] + lowest[i]);
    } else {
        float *restrict out = to;
        for (int64_t i = 0; i < count; i++) out[i] = (float)codes[i] * step[i] + lowest[i];
    }
}

INLINE void grouped(const Grouped *of, int type) {
    const int64_t groups = (of->rows + of->group - 1) / of->group, channels = of->channels;
    const uint8_t *steps = of->coded + 2 * groups * channels, *packed = steps + 2 * groups * channels;
    float lowest[BLOCK], step[BLOCK];
    uint8_t unpacked[BLOCK];
    for (int64_t column = 0; column < channels; column += BLOCK) {
        const int64_t count = least(channels - column, BLOCK);
        for (int64_t row = 0; row < of->rows; row++) {
            const int64_t at = row / of->group * channels + column, number = row * channels + column;
            if (row % of->group == 0)
                for (int64_t i = 0; i < count; i++) {
                    lowest[i] = bfloat16_at(of->coded, at + i);
                    step[i] = bfloat16_at(steps, at + i);
                }
            const uint8_t *codes = packed + number;
            if (of->bits != 8) {
                chunkcache_unpack(packed, of->rows * channels, of->bits, number, count, unpacked);
                codes = unpacked;
            }
            char *to = (char *)of->out + (row * of->stride + column) * SIZE_OF[type];
            row_of_group(to, codes, lowest, step, count, type);
        }
    }
}

void chunkcache_from_groups(const Grouped *of) {
    if (of->type == F32) grouped(of, F32);
    else if (of->type == BF16) grouped(of, BF16);
    else grouped(of, F16);
}

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* The largest bfloat16 that is not above: its upper half as a number of 32 bits. */
INLINE uint32_t rounded_down(float x) {
    const uint32_t bits = bits_of(x);
    return (bits & 0xffff0000u) + (bits >> 31 && bits & 0xffffu ? 0x10000u : 0);
}

INLINE float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Ranges of a group's channels. False: a number is not finite, or a range reaches beyond `largest`. */
static int ranges(const float *restrict from, int64_t rows, int64_t stride, int64_t count, int levels,
                  float largest, float *restrict lowest, float *restrict step) {
    float highest[BLOCK];
    int odd = 0;
    for (int64_t i = 0; i < count; i++) lowest[i] = highest[i] = from[i];
    for (int64_t row = 0; row < rows; row++, from += stride)
        for (int64_t i = 0; i < count; i++) {
            const float x = from[i];
            odd |= !(x - x == 0.0f);
            lowest[i] = x < lowest[i] ? x : lowest[i];
            highest[i] = x > highest[i] ? x : highest[i];
        }
    for (int64_t i = 0; i < count; i++) {
        lowest[i] = as_float(rounded_down(lowest[i]));
        const float width = (highest[i] - lowest[i]) / (float)levels;
        step[i] = -as_float(rounded_down(-width));
        const float top = lowest[i] + (float)levels * step[i];
        odd |= !(top <= largest && lowest[i] >= -largest);
    }
    return !odd;
}

INLINE void put_bfloat16s(const float *from, int64_t count, uint8_t *to) {
    for (int64_t i = 0; i < count; i++) {
        const uint16_t half = (uint16_t)(bits_of(from[i]) >> 16);
        memcpy(to + 2 * i, &half, 2);
    }
}

/* Numbers [rows][channels] to `coded`; `codes` has room for one byte each. False: see `ranges`. */
int chunkcache_to_groups(const float *numbers, int64_t rows, int64_t channels, int64_t group,
                         int bits, float largest, uint8_t *codes, uint8_t *coded) {
    const int levels = (1 << bits) - 1;
    const int64_t groups = (rows + group - 1) / group;
    uint8_t *steps = coded + 2 * groups * channels;
    float lowest[BLOCK], step[BLOCK];
    for (int64_t first = 0; first < rows; first += group)
        for (int64_t column = 0; column < channels; column += BLOCK) {
            const int64_t count = least(channels - column, BLOCK), own = least(rows - first, group);
            const float *from = numbers + first * channels + column;
            if (!ranges(from, own, channels, count, levels, largest, lowest, step)) return 0;
            const int64_t at = 2 * (first / group * channels + column);
            put_bfloat16s(lowest, count, coded + at);
            put_bfloat16s(step, count, steps + at);
            for (int64_t i = 0; i < count; i++) step[i] = step[i] > TINY ? step[i] : TINY;
            for (int64_t row = 0; row < own; row++) {
                const float *restrict x = from + row * channels;
                uint8_t *restrict to = codes + (first + row) * channels + column;
                for (int64_t i = 0; i < count; i++) {
                    const float place = rintf((x[i] - lowest[i]) / step[i]);
                    to[i] = (uint8_t)(int32_t)(place < (float)levels ? place : (float)levels);
                }
            }
        }
    chunkcache_pack(codes, rows * channels, bits, steps + 2 * groups * channels);
    return 1;
}
