/* What is shared by ranges of groups and coefficients: codes, packed. */
#ifndef CHUNKCACHE_CODES_H
#define CHUNKCACHE_CODES_H

#include "vectors.h"

#define TINY 1.17549435e-38f

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t packed_bytes(int64_t count, int width) { return (count * width + 7) / 8; }

INLINE int64_t packed_bytes_of(int64_t count, int bits) {
    int64_t bytes = 0;
    for (int width = 8; width; width /= 2)
        if (bits & width) bytes += packed_bytes(count, width);
    return bytes;
}

INLINE float bfloat16_at(const uint8_t *from, int64_t at) {
    uint16_t half;
    memcpy(&half, from + 2 * at, 2);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* `wanted` codes from number `first` on, of `count` in all. */
void chunkcache_unpack(const uint8_t *packed, int64_t count, int bits, int64_t first, int64_t wanted,
                       uint8_t *restrict to);

/* Behind what was written. */
uint8_t *chunkcache_pack(const uint8_t *restrict codes, int64_t count, int bits,
                         uint8_t *restrict to);

#endif
