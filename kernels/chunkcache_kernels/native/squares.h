/* Keys of whole pages, turned and laid out channel by channel, in squares of 16 by 16 numbers that
 * stay in registers (AVX-512). The slow twin is `keys_of_page` of place.c, the same bit by bit. */
#ifndef CHUNKCACHE_SQUARES_H
#define CHUNKCACHE_SQUARES_H

#include "vectors.h"

#if defined(__AVX512F__) && PAGE % 32 == 0
#define SQUARE 16

/* Memory that comes next, as many bytes each as the keys of a head in a page have. It is asked for
 * piece by piece, beside the work on what is there: these are more streams than a processor follows
 * by itself, and a store to what is not in its cache waits as a load does. */
typedef struct {
    const char *from[2];
    char *to[2];
} Ahead;

INLINE void ask_ahead(const Ahead *of, int64_t at, int bytes) {
    for (int i = 0; i < bytes; i += 64)
        for (int which = 0; which < 2; which++) {
            __builtin_prefetch(of->from[which] + at + i);
            __builtin_prefetch(of->to[which] + at + i, 1);
        }
}

typedef struct {
    const void *kv;          /* the first token's numbers of a head */
    int64_t row;             /* numbers from one token to the next */
    const float *cos, *sin;  /* of the first token, [tokens][rotary_dim] */
    void *to;                /* [dim][PAGE] */
    int dim, rotary_dim;
    const Ahead *ahead;
} PageKeys;

INLINE int fits_squares(int dim, int rotary_dim) {
    return dim % SQUARE == 0 && rotary_dim % (2 * SQUARE) == 0;
}

/* Rows become columns, `stride` bytes apart. */
INLINE void put_square(__m512i *r, char *to, int64_t stride) {
    __m512i s[SQUARE];
    for (int i = 0; i < SQUARE; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < SQUARE; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
        }
    for (int i = 0; i < SQUARE; i += 8)
        for (int j = 0; j < 4; j++) {
            s[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            s[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_si512(to + j * stride, _mm512_shuffle_i32x4(s[j], s[j + 8], 0x88));
        _mm512_storeu_si512(to + (j + 8) * stride, _mm512_shuffle_i32x4(s[j], s[j + 8], 0xdd));
    }
}

/* As `turn` of place.c: one product is rounded, the other is not. */
INLINE void turn_vectors(__m512 *low, __m512 *high, const float *cos, const float *sin, int half) {
    const __m512 a = *low, b = *high;
    *low = _mm512_fmsub_ps(a, _mm512_loadu_ps(cos), _mm512_mul_ps(b, _mm512_loadu_ps(sin)));
    *high = _mm512_fmadd_ps(b, _mm512_loadu_ps(cos + half),
                            _mm512_mul_ps(a, _mm512_loadu_ps(sin + half)));
}

/* As `store_one`: bf16 in the upper halves; the lower ones mean nothing. */
INLINE __m512i to_bf16(__m512 x) {
    const __m512i bits = (__m512i)x, one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i near = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(near, is_nan, bits, _mm512_set1_epi32(0x400000));
}

/* Two tokens side by side, the first one in the lower halves. */
INLINE __m512i beside(__m512 first, __m512 second) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_or_si512(_mm512_srli_epi32(to_bf16(first), 16),
                           _mm512_and_si512(to_bf16(second), upper));
}

/* Channels d .. d + 15 and, where they are turned, half of the turned ones further on. */
INLINE void squares_f32(const PageKeys *of, int d, int is_turned) {
    const int half = of->rotary_dim / 2, pair = is_turned ? 2 : 1;
    for (int first = 0; first < PAGE; first += SQUARE) {
        __m512i low[SQUARE], high[SQUARE];
        for (int t = 0; t < SQUARE; t++) {
            const float *from = (const float *)of->kv + (first + t) * of->row + d;
            ask_ahead(of->ahead, (int64_t)(d * PAGE + (first + t) * SQUARE) * 4 * pair, 64 * pair);
            __m512 a = _mm512_loadu_ps(from);
            if (is_turned) {
                const int64_t angle = (int64_t)(first + t) * of->rotary_dim + d;
                __m512 b = _mm512_loadu_ps(from + half);
                turn_vectors(&a, &b, of->cos + angle, of->sin + angle, half);
                high[t] = (__m512i)b;
            }
            low[t] = (__m512i)a;
        }
        char *to = (char *)of->to + ((int64_t)d * PAGE + first) * 4;
        put_square(low, to, PAGE * 4);
        if (is_turned) put_square(high, to + (int64_t)half * PAGE * 4, PAGE * 4);
    }
}

INLINE void squares_bf16(const PageKeys *of, int d, int is_turned) {
    const int half = of->rotary_dim / 2, pair = is_turned ? 2 : 1;
    for (int first = 0; first < PAGE; first += 2 * SQUARE) {
        __m512i low[SQUARE], high[SQUARE];
        for (int t = 0; t < SQUARE; t++) {
            __m512 a[2], b[2];
            for (int n = 0; n < 2; n++) {
                const int token = first + 2 * t + n;
                const uint16_t *from = (const uint16_t *)of->kv + token * of->row + d;
                ask_ahead(of->ahead, (int64_t)(d * PAGE + token * SQUARE) * 2 * pair, 32 * pair);
                a[n] = (__m512)load_bf16(from);
                if (!is_turned) continue;
                const int64_t angle = (int64_t)token * of->rotary_dim + d;
                b[n] = (__m512)load_bf16(from + half);
                turn_vectors(&a[n], &b[n], of->cos + angle, of->sin + angle, half);
            }
            low[t] = beside(a[0], a[1]);
            if (is_turned) high[t] = beside(b[0], b[1]);
        }
        char *to = (char *)of->to + ((int64_t)d * PAGE + first) * 2;
        put_square(low, to, PAGE * 2);
        if (is_turned) put_square(high, to + (int64_t)half * PAGE * 2, PAGE * 2);
    }
}

/* All channels of a head in a page that is full; `type` is F32 or BF16, there and here. */
INLINE void squares_of_page(const PageKeys *of, int type) {
    const int half = of->rotary_dim / 2;
    for (int d = 0; d < half; d += SQUARE)
        type == F32 ? squares_f32(of, d, 1) : squares_bf16(of, d, 1);
    for (int d = of->rotary_dim; d < of->dim; d += SQUARE)
        type == F32 ? squares_f32(of, d, 0) : squares_bf16(of, d, 0);
}

#define HAS_SQUARES 1
#else
#define HAS_SQUARES 0
#endif

#endif
