/* Coefficients in a basis ⇄ codes of the centres next to them, and their product with its directions.
 * Called by any thread, each for itself. Twin: chunkcache/store/codec/coefficients.py, bit by bit, and
 * of the product basis.py beside it. */
#include "codes.h"

#define LANES 16   /* what may be read and written beyond a run */
#define BLOCK 4096 /* codes unpacked at a time, coefficients at most */
#define MOST_CODES 256
#define COLUMNS 64 /* four vectors of a product's tile */
#define TILE 6     /* rows of it: 24 sums, four vectors of directions, one pair of a row */
#define NORM 46000.0f /* squared, below what 31 bits hold: no sum of a product is beyond */
#define LARGEST 32767.0f

typedef struct {
    const uint8_t *coded; /* scales, bf16 [kept], then the codes of each run */
    const float *tables;  /* centres, or edges behind which the next code begins: [9][256] */
    const int64_t *runs;  /* [num_runs][2]: bits, coefficients */
    float *numbers;       /* [rows][stride]; to be written, LANES longer than kept */
    int64_t stride, rows, kept, num_runs;
} Coefficients;

#if defined(__AVX512F__)
/* Sixteen entries of a table, of which no more than 2^bits are there: few stay in registers. */
INLINE __m512 entries(const float *table, __m512i at, int bits) {
    if (bits < 5) return _mm512_permutexvar_ps(at, _mm512_loadu_ps(table));
    if (bits > 5) return _mm512_i32gather_ps(at, table, 4);
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), at, _mm512_loadu_ps(table + 16));
}
#endif

/* Writes whole vectors. */
INLINE void look_up(const float *restrict table, const uint8_t *restrict codes,
                    const float *restrict scales, int64_t count, int bits, float *restrict to) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < count; i += LANES) {
        const __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i)));
        const __m512 centre = entries(table, at, bits);
        _mm512_storeu_ps(to + i, _mm512_mul_ps(centre, _mm512_loadu_ps(scales + i)));
    }
#else
    (void)bits;
    for (int64_t i = 0; i < count; i++) to[i] = table[codes[i]] * scales[i];
#endif
}

/* Scaled centres of all codes. `scales` has room for LANES more than are kept. */
void chunkcache_from_centres(const Coefficients *of, float *scales) {
    uint8_t codes[BLOCK + LANES] = {0};
    for (int64_t i = 0; i < of->kept; i++) scales[i] = bfloat16_at(of->coded, i);
    const uint8_t *packed = of->coded + 2 * of->kept;
    int64_t first = 0;
    for (int64_t run = 0; run < of->num_runs; run++) {
        const int bits = (int)of->runs[2 * run];
        const int64_t count = of->runs[2 * run + 1], all = of->rows * count;
        const int64_t many = count < BLOCK ? BLOCK / count : 1;
        const float *table = of->tables + bits * MOST_CODES;
        for (int64_t row = 0; row < of->rows; row += many) {
            const int64_t rows = least(many, of->rows - row);
            chunkcache_unpack(packed, all, bits, row * count, rows * count, codes);
            for (int64_t r = 0; r < rows; r++) {
                float *to = of->numbers + (row + r) * of->stride + first;
                const uint8_t *own = codes + r * count;
                if (bits < 5) look_up(table, own, scales + first, count, 4, to);
                else if (bits == 5) look_up(table, own, scales + first, count, 5, to);
                else look_up(table, own, scales + first, count, 8, to);
            }
        }
        packed += packed_bytes_of(all, bits);
        first += count;
    }
}

/* How many edges lie below, by halving. */
INLINE void nearest(const float *restrict edges, const float *restrict x,
                    const float *restrict scales, int64_t count, int bits, uint8_t *restrict to) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 there = (__mmask16)(0xffff >> (count - i < LANES ? LANES - (count - i) : 0));
        const __m512 normal = _mm512_div_ps(_mm512_maskz_loadu_ps(there, x + i),
                                            _mm512_maskz_loadu_ps(there, scales + i));
        __m512i code = _mm512_setzero_si512();
        for (int half = 1 << (bits - 1); half; half /= 2) {
            const __m512i at = _mm512_add_epi32(code, _mm512_set1_epi32(half - 1));
            const __mmask16 above = _mm512_cmp_ps_mask(entries(edges, at, bits), normal, _CMP_LT_OQ);
            code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(half));
        }
        _mm512_mask_cvtepi32_storeu_epi8(to + i, there, code);
    }
#else
    for (int64_t i = 0; i < count; i++) {
        const float normal = x[i] / scales[i];
        int32_t code = 0;
        for (int32_t half = 1 << (bits - 1); half; half /= 2)
            code += edges[code + half - 1] < normal ? half : 0;
        to[i] = (uint8_t)code;
    }
#endif
}

/* The codes of `numbers`, divided by their scales (none is 0), run after run. `codes` has room for a
 * byte of each number of the longest run. */
void chunkcache_to_centres(const Coefficients *of, const float *scales, uint8_t *codes,
                           uint8_t *coded) {
    int64_t first = 0;
    for (int64_t run = 0; run < of->num_runs; run++) {
        const int bits = (int)of->runs[2 * run];
        const int64_t count = of->runs[2 * run + 1];
        const float *edges = of->tables + bits * MOST_CODES, *own = scales + first;
        for (int64_t row = 0; row < of->rows; row++) {
            const float *x = of->numbers + row * of->stride + first;
            uint8_t *to = codes + row * count;
            switch (bits) {
                case 1: nearest(edges, x, own, count, 1, to); break;
                case 2: nearest(edges, x, own, count, 2, to); break;
                case 3: nearest(edges, x, own, count, 3, to); break;
                case 4: nearest(edges, x, own, count, 4, to); break;
                case 5: nearest(edges, x, own, count, 5, to); break;
                case 6: nearest(edges, x, own, count, 6, to); break;
                case 7: nearest(edges, x, own, count, 7, to); break;
                default: nearest(edges, x, own, count, 8, to);
            }
        }
        coded = chunkcache_pack(codes, of->rows * count, bits, coded);
        first += count;
    }
}

/* ---------------------------------------------------------------- products of coefficients */

typedef struct {
    const Coefficients *of;
    float *scales;             /* scratch, LANES longer than kept */
    const int16_t *directions; /* [panels][pairs][COLUMNS][2]: 0 beyond channels, and beyond kept */
    const float *steps, *mean; /* [panels * COLUMNS] */
    int16_t *narrow;           /* [rows, up to whole tiles][pairs][2], scratch */
    float *row_steps;          /* as many rows, scratch */
    void *out;                 /* [rows][channels] */
    int64_t stride, channels, pairs;
    float limit;
    int32_t type;
} Restored;

#if defined(__AVX512BW__) && defined(__AVX512VL__) && WIDTH == 16

int chunkcache_restores(void) { return 1; }

/* Written as an instruction where there is one: through its intrinsic gcc keeps sums in memory. */
INLINE void add_pair(__m512i *sums, __m512i columns, __m512i pair) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sums) : "v"(columns), "v"(pair));
#else
    *sums = _mm512_add_epi32(*sums, _mm512_madd_epi16(columns, pair));
#endif
}

INLINE __mmask16 lanes(int64_t count) {
    return (__mmask16)(count >= LANES ? 0xffff : count > 0 ? (1 << count) - 1 : 0);
}

/* A row in steps of its own; 0 beyond its `count` numbers. */
static float narrow_row(const float *from, int64_t count, int64_t padded, int16_t *to) {
    __m512 squares = _mm512_setzero_ps(), tops = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += LANES) {
        const __m512 x = _mm512_maskz_loadu_ps(lanes(count - i), from + i);
        squares = _mm512_fmadd_ps(x, x, squares);
        tops = _mm512_max_ps(tops, _mm512_abs_ps(x));
    }
    const float norm = sqrtf(_mm512_reduce_add_ps(squares)) / NORM;
    const float top = _mm512_reduce_max_ps(tops) / LARGEST, step = norm > top ? norm : top;
    const __m512 scale = _mm512_set1_ps(step > TINY ? 1.0f / step : 0.0f);
    for (int64_t i = 0; i < padded; i += LANES) {
        const __m512 x = _mm512_maskz_loadu_ps(lanes(count - i), from + i);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, scale));
        _mm256_mask_storeu_epi16(to + i, lanes(padded - i), _mm512_cvtepi32_epi16(whole));
    }
    return step;
}

INLINE void put(char *to, __m512 x, __mmask16 there, int type) {
    if (type == F32) {
        _mm512_mask_storeu_ps(to, there, x);
    } else if (type == F16) {
        _mm256_mask_storeu_epi16(to, there, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    } else {
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        _mm256_mask_storeu_epi16(to, there, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
    }
}

INLINE void tile(const Restored *of, int64_t row, int64_t column, int type) {
    const int64_t stride = 2 * of->pairs, live = least(of->of->rows - row, TILE);
    const int16_t *panel = of->directions + column * stride, *in = of->narrow + row * stride;
    const int16_t *in_3 = in + 3 * stride;
    __m512i sums[TILE][4];
#pragma GCC unroll 6
    for (int r = 0; r < TILE; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) sums[r][v] = _mm512_setzero_si512();
    for (int64_t p = 0; p < of->pairs; p++, in += 2, in_3 += 2, panel += 2 * COLUMNS) {
        /* so written, two registers and the stride address all rows */
        const int16_t *rows[TILE] = {in,   in + stride,     in + 2 * stride,
                                     in_3, in + 4 * stride, in_3 + 2 * stride};
        __m512i columns[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) columns[v] = _mm512_loadu_si512(panel + v * 2 * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r++) {
            int32_t pair;
            memcpy(&pair, rows[r], 4);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) add_pair(&sums[r][v], columns[v], _mm512_set1_epi32(pair));
        }
    }
    int32_t totals[TILE][COLUMNS]; /* else gcc would keep them in memory all the while */
#pragma GCC unroll 6
    for (int r = 0; r < TILE; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) _mm512_storeu_si512(totals[r] + v * LANES, sums[r][v]);
    const __m512 limit = _mm512_set1_ps(of->limit), lower = _mm512_set1_ps(-of->limit);
    for (int r = 0; r < live; r++)
        for (int v = 0; v < 4; v++) {
            const int64_t at = column + v * LANES;
            const __m512 step = _mm512_mul_ps(_mm512_loadu_ps(of->steps + at),
                                              _mm512_set1_ps(of->row_steps[row + r]));
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(totals[r] + v * LANES));
            const __m512 x = _mm512_fmadd_ps(sum, step, _mm512_loadu_ps(of->mean + at));
            char *to = (char *)of->out + ((row + r) * of->stride + at) * SIZE_OF[type];
            put(to, _mm512_max_ps(_mm512_min_ps(x, limit), lower), lanes(of->channels - at), type);
        }
}

/* Mean + coefficients . directions, rounded to 16 bits each; sums are exact. */
void chunkcache_restore(const Restored *of) {
    const Coefficients *in = of->of;
    chunkcache_from_centres(in, of->scales);
    for (int64_t row = 0; row < in->rows; row++)
        of->row_steps[row] = narrow_row(in->numbers + row * in->stride, in->kept, 2 * of->pairs,
                                        of->narrow + row * 2 * of->pairs);
    for (int64_t column = 0; column < of->channels; column += COLUMNS)
        for (int64_t row = 0; row < in->rows; row += TILE) {
            if (of->type == F32) tile(of, row, column, F32);
            else if (of->type == BF16) tile(of, row, column, BF16);
            else tile(of, row, column, F16);
        }
}

#else

int chunkcache_restores(void) { return 0; }
void chunkcache_restore(const Restored *of) { (void)of; }

#endif
