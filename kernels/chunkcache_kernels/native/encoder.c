#include "encoder.h"

#include "vectors.h"

#if defined(__AVX512BW__) && defined(__AVX512F__) && WIDTH == 16

#define TILE 6    /* rows of a product's tile: 24 sums, four vectors of weights, one pair of a row */
#define LOOKS 12  /* rows that attend together: 24 sums, two vectors of keys, one number of a row */
#define LITTLE 4  /* rows that attend together where there are no more */
#define BLOCK 96  /* rows that go through a product together, while its weights are near; whole tiles */
#define NOTHING (-1e30f)

/* Rows rounded for a product. */
typedef struct {
    int16_t *numbers; /* [rows][terms] */
    float *steps;     /* [rows][blocks] */
} Narrow;

typedef struct {
    float *qkv;     /* [rows + LOOKS][3][width]: more rows may be read, not used, than there are */
    float *mixed;   /* [rows][width] */
    float *out;     /* [BLOCK][width] */
    float *up;      /* [BLOCK][terms of a block of `down`] */
    Narrow in;      /* [BLOCK][width] */
    Narrow between; /* [BLOCK][terms of a block of `down`] */
    float *keys;    /* [dim][padded longest] */
    float *values;  /* [longest][dim] */
    float *scores;  /* [LOOKS][padded longest] */
} Scratch;

static int padded(int count) { return (count + COLUMNS - 1) / COLUMNS * COLUMNS; }

static char *take(char **memory, int64_t bytes) {
    char *taken = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return taken;
}

static Narrow narrow_in(int terms, char **memory) {
    return (Narrow){
        .numbers = (int16_t *)take(memory, 2LL * BLOCK * terms),
        .steps = (float *)take(memory, 4LL * BLOCK * (terms / COLUMNS)),
    };
}

static Scratch scratch_in(const Encoder *of, int rows, int longest, char **memory) {
    const int dim = of->width / of->heads;
    return (Scratch){
        .qkv = (float *)take(memory, 12LL * (rows + LOOKS) * of->width),
        .mixed = (float *)take(memory, 4LL * rows * of->width),
        .out = (float *)take(memory, 4LL * BLOCK * of->width),
        .up = (float *)take(memory, 4LL * BLOCK * of->inner),
        .in = narrow_in(of->width, memory),
        .between = narrow_in(of->inner, memory),
        .keys = (float *)take(memory, 4LL * dim * padded(longest)),
        .values = (float *)take(memory, 4LL * dim * longest),
        .scores = (float *)take(memory, 4LL * LOOKS * padded(longest)),
    };
}

/* ---------------------------------------------------------------- products */

typedef int32_t Pair __attribute__((may_alias, aligned(4)));

/* Adds sixteen columns' pairs times one pair of a row. Written as an instruction where there is
 * one: through its intrinsic gcc keeps most of the sums in memory. */
INLINE void add_pair(__m512i *sums, __m512i columns, __m512i pair) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sums) : "v"(columns), "v"(pair));
#else
    *sums = _mm512_add_epi32(*sums, _mm512_madd_epi16(columns, pair));
#endif
}

/* Terms of a row in steps of their own. */
INLINE void narrow_row(const float *from, int terms, int16_t *to, float *step) {
    vf squares = {}, tops = {};
    for (int i = 0; i < terms; i += WIDTH) {
        vf x = load_f32(from + i);
        squares += x * x;
        tops = larger(tops, (vf)_mm512_abs_ps((__m512)x));
    }
    const float norm = sqrtf(sum(squares)) / NORM, top = largest(tops) / LARGEST;
    *step = norm > top ? norm : top;
    const float scale = *step > 0.0f ? 1.0f / *step : 0.0f;
    for (int i = 0; i < terms; i += WIDTH) {
        __m512i whole = _mm512_cvtps_epi32((__m512)(load_f32(from + i) * scale));
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtepi32_epi16(whole));
    }
}

/* Rows of `blocks` blocks of terms, each block in steps of its own. */
static void narrow_rows(const float *rows, int64_t stride, int num_rows, int terms, int blocks,
                        const Narrow *to) {
    for (int r = 0; r < num_rows; r++)
        for (int b = 0; b < blocks; b++) {
            const int64_t at = (int64_t)r * blocks + b;
            narrow_row(rows + r * stride + (int64_t)b * terms, terms, to->numbers + at * terms,
                       to->steps + at);
        }
}

/* A product of rounded rows with `blocks` blocks of a linear's terms, from the `block`th on, into
 * `out`. `first`: bias + sums, else what is there + sums. */
typedef struct {
    const Linear *linear;
    const Narrow *rows;
    int num_rows, block, blocks, first;
    float *out;
    int64_t out_stride;
} Product;

/* One tile: TILE rows, of which `live` are kept, by the panel of `column` and, if there are four
 * vectors, the next one. */
INLINE void tile(const Product *of, int row, int column, int begin, int vectors, int live) {
    const Linear *linear = of->linear;
    const int pairs = linear->in / linear->blocks / 2;
    const int64_t panel_numbers = (int64_t)pairs * 2 * COLUMNS;
    const int64_t stride = (int64_t)of->blocks * pairs * 2;
    const int16_t *in = of->rows->numbers + row * stride, *in_3 = in + 3 * stride;
    /* the next panels are asked for meanwhile, a part of them by each tile */
    const int64_t ahead = 2 * panel_numbers / ((of->num_rows + TILE - 1) / TILE) / pairs;
    for (int b = 0; b < of->blocks; b++) {
        const int64_t at = (int64_t)(of->block + b) * linear->out + column;
        const int16_t *panel = linear->numbers + at / COLUMNS * panel_numbers;
        const int16_t *next = panel + 2 * panel_numbers + row / TILE * ahead * pairs;
        __m512i sums[TILE][4];
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_setzero_si512();
        for (int p = 0; p < pairs; p++, in += 2, in_3 += 2, panel += 2 * COLUMNS, next += ahead) {
            /* so written, two registers and the stride address all rows */
            const int16_t *rows[TILE] = {in,   in + stride,     in + 2 * stride,
                                         in_3, in + 4 * stride, in_3 + 2 * stride};
            __m512i columns[4];
            _mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                columns[v] = _mm512_loadu_si512(panel + v / 2 * panel_numbers + v % 2 * COLUMNS);
#pragma GCC unroll 6
            for (int r = 0; r < TILE; r++) {
                const __m512i pair = _mm512_set1_epi32(*(const Pair *)rows[r]);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) add_pair(&sums[r][v], columns[v], pair);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < TILE && r < live; r++) {
            float *to = of->out + (row + r) * of->out_stride + column - begin;
            const float *add = of->first && b == 0 ? linear->bias + column : to;
            const float step = of->rows->steps[(int64_t)(row + r) * of->blocks + b];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                /* written out, so that every tile rounds alike */
                const __m512 scale = (__m512)(load_f32(linear->steps + at + v * WIDTH) * step);
                const __m512 before = (__m512)load_f32(add + v * WIDTH);
                const __m512 total = _mm512_cvtepi32_ps(sums[r][v]);
                store_f32(to + v * WIDTH, (vf)_mm512_fmadd_ps(total, scale, before));
            }
        }
    }
}

/* Columns [begin, end), two panels at a time. */
static void product(const Product *of, int begin, int end) {
    for (int column = begin; column < end; column += 2 * COLUMNS)
        for (int row = 0; row < of->num_rows; row += TILE) {
            const int live = of->num_rows - row < TILE ? of->num_rows - row : TILE;
            if (end - column > COLUMNS)
                tile(of, row, column, begin, 4, live);
            else
                tile(of, row, column, begin, 2, live);
        }
}

/* out = rows . weights + bias. */
static void linear_rows(const Linear *linear, const float *in, int num_rows, float *out,
                        const Scratch *scratch) {
    const Product all = {linear, &scratch->in, num_rows, 0, linear->blocks, 1, out, linear->out};
    narrow_rows(in, linear->in, num_rows, linear->in / linear->blocks, linear->blocks,
                &scratch->in);
    product(&all, 0, linear->out);
}

/* ---------------------------------------------------------------- one row at a time */

static void norm_row(float *x, const float *added, const float *weight, const float *shift,
                     float eps, int width) {
    vf total = {}, squares = {};
    for (int i = 0; i < width; i += WIDTH) {
        vf y = load_f32(x + i);
        if (added) y += load_f32(added + i);
        store_f32(x + i, y);
        total += y;
    }
    const float mean = sum(total) / (float)width;
    for (int i = 0; i < width; i += WIDTH) {
        vf y = load_f32(x + i) - mean;
        squares += y * y;
    }
    const float scale = 1.0f / sqrtf(sum(squares) / (float)width + eps);
    for (int i = 0; i < width; i += WIDTH)
        store_f32(x + i,
                  (load_f32(x + i) - mean) * scale * load_f32(weight + i) + load_f32(shift + i));
}

/* x (1 + erf(x / sqrt 2)) / 2; erf as 7.1.26 of Abramowitz and Stegun, error below 1.5e-7. */
INLINE vf gelu(vf x) {
    const vf size = (vf)_mm512_abs_ps((__m512)x);
    const vf under = size * (0.3275911f * 0.70710678118f) + 1.0f;
    vf t = (vf)_mm512_rcp14_ps((__m512)under);
    t = t * (2.0f - under * t);
    vf rest = (vf){} + 1.061405429f;
    rest = rest * t - 1.453152027f;
    rest = rest * t + 1.421413741f;
    rest = rest * t - 0.284496736f;
    rest = rest * t + 0.254829592f;
    rest = rest * t * exp2_of(x * x * -0.72134752044f) * size * 0.5f;
    return larger(x, (vf){}) - rest;
}

static void gelu_rows(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i += WIDTH) store_f32(x + i, gelu(load_f32(x + i)));
}

/* ---------------------------------------------------------------- attention */

/* out[r][c] = sum_k a[r][k] b[k][c] scale[r] of two vectors of columns and `rows` rows, of which
 * `live` are kept. */
INLINE void mix_tile(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int terms,
                     float *out, int64_t out_stride, const float *scale, int rows, int live) {
    vf sums[LOOKS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vf){};
    for (int k = 0; k < terms; k++) {
        const vf low = load_f32(b + k * b_stride), high = load_f32(b + k * b_stride + WIDTH);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const float x = a[r * a_stride + k];
            sums[r][0] += low * x;
            sums[r][1] += high * x;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows && r < live; r++) {
        store_f32(out + r * out_stride, sums[r][0] * scale[r]);
        store_f32(out + r * out_stride + WIDTH, sums[r][1] * scale[r]);
    }
}

static void mix(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int terms,
                float *out, int64_t out_stride, const float *scale, int rows) {
    if (rows > LITTLE)
        mix_tile(a, a_stride, b, b_stride, terms, out, out_stride, scale, LOOKS, rows);
    else
        mix_tile(a, a_stride, b, b_stride, terms, out, out_stride, scale, LITTLE, rows);
}

/* Scores of a row in powers of two -> their exponentials; returns 1 / their sum. */
static float soften(float *scores, int count, int padded_count) {
    for (int i = count; i < padded_count; i++) scores[i] = NOTHING;
    vf tops = (vf){} + NOTHING;
    for (int i = 0; i < padded_count; i += WIDTH) tops = larger(tops, load_f32(scores + i));
    const float top = largest(tops);
    vf total = {};
    for (int i = 0; i < padded_count; i += WIDTH) {
        vf x = exp2_of(load_f32(scores + i) - top);
        store_f32(scores + i, x);
        total += x;
    }
    return 1.0f / sum(total);
}

/* One head of one text: `qkv` and `mixed` stand at the text's first row and at the head. */
static void attend_head(const float *qkv, float *mixed, int length, int width, int dim,
                        const Scratch *scratch) {
    const int across = padded(length);
    const float scale = 1.4426950408889634f / sqrtf((float)dim);
    const float *keys = qkv + width, *values = qkv + 2 * width;
    float scales[LOOKS], shares[LOOKS];
    for (int t = 0; t < length; t++) {
        memcpy(scratch->values + t * dim, values + (int64_t)t * 3 * width, 4LL * dim);
        for (int d = 0; d < dim; d++)
            scratch->keys[d * across + t] = keys[(int64_t)t * 3 * width + d];
    }
    for (int d = 0; d < dim; d++)
        for (int t = length; t < across; t++) scratch->keys[d * across + t] = 0.0f;
    for (int r = 0; r < LOOKS; r++) scales[r] = scale;
    for (int begin = 0; begin < length; begin += LOOKS) {
        const int rows = length - begin < LOOKS ? length - begin : LOOKS;
        const float *query = qkv + (int64_t)begin * 3 * width;
        for (int column = 0; column < across; column += COLUMNS)
            mix(query, 3 * width, scratch->keys + column, across, dim, scratch->scores + column,
                across, scales, rows);
        for (int r = 0; r < rows; r++)
            shares[r] = soften(scratch->scores + (int64_t)r * across, length, across);
        for (int column = 0; column < dim; column += COLUMNS)
            mix(scratch->scores, across, scratch->values + column, dim, length,
                mixed + (int64_t)begin * width + column, width, shares, rows);
    }
}

/* ---------------------------------------------------------------- layers */

static void feed_forward(const Encoder *of, const EncoderLayer *layer, float *hidden, int rows,
                         const Scratch *scratch) {
    const Linear *up = &layer->up, *down = &layer->down;
    const int width = of->width, terms = down->in / down->blocks;
    const Product widened = {up, &scratch->in, rows, 0, up->blocks, 1, scratch->up, terms};
    narrow_rows(hidden, width, rows, up->in / up->blocks, up->blocks, &scratch->in);
    for (int block = 0; block < down->blocks; block++) {
        product(&widened, block * terms, (block + 1) * terms);
        gelu_rows(scratch->up, (int64_t)rows * terms);
        narrow_rows(scratch->up, terms, rows, terms, 1, &scratch->between);
        const Product narrowed = {down, &scratch->between, rows, block, 1, block == 0,
                                  scratch->out, width};
        product(&narrowed, 0, width);
    }
    for (int r = 0; r < rows; r++)
        norm_row(hidden + (int64_t)r * width, scratch->out + (int64_t)r * width, layer->down_norm,
                 layer->down_shift, of->eps, width);
}

static void layer_rows(const Encoder *of, const EncoderLayer *layer, const int32_t *starts,
                       int texts, float *hidden, const Scratch *scratch) {
    const int width = of->width, dim = width / of->heads, rows = starts[texts];
    for (int begin = 0; begin < rows; begin += BLOCK) {
        const int some = rows - begin < BLOCK ? rows - begin : BLOCK;
        linear_rows(&layer->qkv, hidden + (int64_t)begin * width, some,
                    scratch->qkv + (int64_t)begin * 3 * width, scratch);
    }
    for (int text = 0; text < texts; text++)
        for (int head = 0; head < of->heads; head++)
            attend_head(scratch->qkv + (int64_t)starts[text] * 3 * width + head * dim,
                        scratch->mixed + (int64_t)starts[text] * width + head * dim,
                        starts[text + 1] - starts[text], width, dim, scratch);
    for (int begin = 0; begin < rows; begin += BLOCK) {
        const int some = rows - begin < BLOCK ? rows - begin : BLOCK;
        float *here = hidden + (int64_t)begin * width;
        linear_rows(&layer->mixed, scratch->mixed + (int64_t)begin * width, some, scratch->out,
                    scratch);
        for (int r = 0; r < some; r++)
            norm_row(here + (int64_t)r * width, scratch->out + (int64_t)r * width,
                     layer->mixed_norm, layer->mixed_shift, of->eps, width);
        feed_forward(of, layer, here, some, scratch);
    }
}

int64_t chunkcache_encoder_bytes(const Encoder *of, int rows, int longest) {
    char *memory = NULL;
    scratch_in(of, rows, longest, &memory);
    return (int64_t)memory;
}

/* `hidden` [rows][width] of texts whose token ids stand at starts[text] to starts[text + 1]. */
void chunkcache_encode(const Encoder *of, const int32_t *ids, const int32_t *starts, int texts,
                       int longest, float *hidden, char *memory) {
    const int width = of->width;
    const Scratch scratch = scratch_in(of, starts[texts], longest, &memory);
    for (int text = 0; text < texts; text++)
        for (int row = starts[text]; row < starts[text + 1]; row++) {
            float *to = hidden + (int64_t)row * width;
            memcpy(to, of->words + (int64_t)ids[row] * width, 4LL * width);
            norm_row(to, of->positions + (int64_t)(row - starts[text]) * width, of->norm,
                     of->shift, of->eps, width);
        }
    for (int layer = 0; layer < of->num_layers; layer++)
        layer_rows(of, of->layers + layer, starts, texts, hidden, &scratch);
}

int chunkcache_encoder_here(void) { return 1; }

#else

int64_t chunkcache_encoder_bytes(const Encoder *of, int rows, int longest) {
    (void)of, (void)rows, (void)longest;
    return 0;
}

void chunkcache_encode(const Encoder *of, const int32_t *ids, const int32_t *starts, int texts,
                       int longest, float *hidden, char *memory) {
    (void)of, (void)ids, (void)starts, (void)texts, (void)longest, (void)hidden, (void)memory;
}

int chunkcache_encoder_here(void) { return 0; }

#endif
