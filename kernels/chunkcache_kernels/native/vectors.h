/* Vectors of fp32 as wide as the machine's, and the number types that are read as fp32.
 *
 * PAGE (tokens in a page) is given by the build; a vector is never wider than a page. */
#ifndef CHUNKCACHE_VECTORS_H
#define CHUNKCACHE_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && PAGE % 16 == 0
#define WIDTH 16
#else
#define WIDTH 8
#endif
#if PAGE % WIDTH
#error "PAGE must be a multiple of 8"
#endif
#define PAGE_VECTORS (PAGE / WIDTH)

typedef float vf __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef int32_t vi __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef uint16_t vh __attribute__((vector_size(WIDTH * 2), aligned(2)));
typedef int8_t vb __attribute__((vector_size(WIDTH), aligned(1)));
typedef uint32_t vu __attribute__((vector_size(WIDTH * 4), aligned(4)));

enum { F32 = 0, BF16 = 1, F16 = 2, I8 = 3 };

#define INLINE static inline __attribute__((always_inline))

INLINE vf load_f32(const float *from) { return *(const vf *)from; }
INLINE void store_f32(float *to, vf x) { *(vf *)to = x; }

INLINE vf load_bf16(const uint16_t *from) {
#if defined(__AVX512F__) && WIDTH == 16
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return (vf)_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
#endif
    vu wide = __builtin_convertvector(*(const vh *)from, vu) << 16;
    return (vf)wide;
}

INLINE vf load_f16(const uint16_t *from) {
#if defined(__AVX512F__) && WIDTH == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__F16C__) && WIDTH == 8
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    vf wide;
    for (int i = 0; i < WIDTH; i++) {
        _Float16 one;
        memcpy(&one, from + i, 2);
        wide[i] = (float)one;
    }
    return wide;
#endif
}

INLINE vf load_i8(const int8_t *from) {
#if defined(__AVX512F__) && WIDTH == 16
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__) && WIDTH == 8
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#endif
    return __builtin_convertvector(__builtin_convertvector(*(const vb *)from, vi), vf);
}

/* A vector of any type; `at` counts numbers. `type` is a constant where speed matters. */
INLINE vf load_as_f32(const void *from, int64_t at, int type) {
    if (type == F32) return load_f32((const float *)from + at);
    if (type == BF16) return load_bf16((const uint16_t *)from + at);
    if (type == F16) return load_f16((const uint16_t *)from + at);
    return load_i8((const int8_t *)from + at);
}

static const int SIZE_OF[] = {4, 2, 2, 1};

/* Asks for the numbers `at` and on: what streams through is asked for before it is needed, because
 * a few rows next to each other are more streams than a processor follows by itself. */
INLINE void ask_for(const void *from, int64_t at, int type) {
    __builtin_prefetch((const char *)from + at * SIZE_OF[type]);
}

INLINE float one_as_f32(const void *from, int64_t at, int type) {
    if (type == F32) return ((const float *)from)[at];
    if (type == BF16) {
        uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
        float x;
        memcpy(&x, &bits, 4);
        return x;
    }
    if (type == F16) {
        _Float16 one;
        memcpy(&one, (const uint16_t *)from + at, 2);
        return (float)one;
    }
    return (float)((const int8_t *)from)[at];
}

/* Rounded to nearest, ties to even, as torch rounds; a NaN stays one. */
INLINE void store_one(void *to, int64_t at, int type, float x) {
    if (type == F32) {
        ((float *)to)[at] = x;
    } else if (type == BF16) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        bits = x != x ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
        ((uint16_t *)to)[at] = (uint16_t)(bits >> 16);
    } else {
        _Float16 one = (_Float16)x;
        memcpy((uint16_t *)to + at, &one, 2);
    }
}

typedef float vf8 __attribute__((vector_size(32), aligned(4)));
typedef float vf4 __attribute__((vector_size(16), aligned(4)));

INLINE vf8 half_of(vf x, int which) {
    vf8 half;
    memcpy(&half, (const float *)&x + which * (WIDTH - 8), sizeof half);
    return half;
}

/* Lanes two and two, not one after the other: a chain of additions would cost more than a row. */
INLINE float sum(vf x) {
#if defined(__AVX512F__) && WIDTH == 16
    return _mm512_reduce_add_ps((__m512)x);
#endif
    vf8 eight = half_of(x, 0);
    if (WIDTH == 16) eight += half_of(x, 1);
    vf4 four = {eight[0] + eight[4], eight[1] + eight[5], eight[2] + eight[6], eight[3] + eight[7]};
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* a where the mask is set, else b: what is not picked may be anything, a NaN too. */
INLINE vf pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__) && WIDTH == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__) && WIDTH == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return pick(a > b, a, b);
#endif
}

INLINE float largest(vf x) {
#if defined(__AVX512F__) && WIDTH == 16
    return _mm512_reduce_max_ps((__m512)x);
#endif
    float top = x[0];
    for (int i = 1; i < WIDTH; i++) top = x[i] > top ? x[i] : top;
    return top;
}

/* 2^f for f in [-1/2, 1/2]: the Taylor series of e^(f ln 2); relative error below 2e-7. */
INLINE vf exp2_near(vf f) {
    vf y = (vf){} + 1.5403530e-4f;
    y = y * f + 1.3333558e-3f;
    y = y * f + 9.6181291e-3f;
    y = y * f + 5.5504109e-2f;
    y = y * f + 2.4022651e-1f;
    y = y * f + 6.9314718e-1f;
    return y * f + 1.0f;
}

/* 2^x for x <= 0 (anything below -126 gives a number that counts for nothing): x = n + f, and n
 * added to the exponent. */
INLINE vf exp2_of(vf x) {
    vf low = (vf){} - 126.0f;
    x = larger(x, low);
    vi n = __builtin_convertvector(x - 0.5f, vi); /* truncation rounds a negative number upwards */
    vf f = x - __builtin_convertvector(n, vf);
    return (vf)((vi)exp2_near(f) + (n << 23));
}

/* 2^x for x <= 0, and nothing at all below 2^-126; a NaN stays one. */
INLINE vf weight_of(vf x) {
#if defined(__AVX512F__) && WIDTH == 16
    __m512 at = (__m512)x, whole = _mm512_roundscale_ps(at, 0);
    __mmask16 counts = _mm512_cmp_ps_mask(at, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return (vf)_mm512_maskz_scalef_ps(counts, (__m512)exp2_near((vf)_mm512_sub_ps(at, whole)), whole);
#else
    return pick(x < -126.0f, (vf){}, pick(x == x, exp2_of(x), x));
#endif
}

/* gate / (1 + e^-gate) * up, by e^-|gate|, which cannot overflow. */
INLINE vf gated(vf gate, vf up) {
    vi positive = gate > 0.0f;
    vf small = exp2_of(pick(positive, -gate, gate) * 1.4426950408889634f);
    return gate * up / (small + 1.0f) * pick(positive, (vf){} + 1.0f, small);
}

/* cap tanh(x / cap), of which 0 is none. */
INLINE vf capped(vf x, float cap) {
    if (cap == 0.0f) return x;
    vf size = pick(x < 0.0f, -x, x) * (2.0f * 1.4426950408889634f / cap);
    vf small = exp2_of(-size); /* e^(-2 |x| / cap), which cannot overflow */
    vf bent = (1.0f - small) / (1.0f + small) * cap;
    return pick(x < 0.0f, -bent, bent);
}

#endif
