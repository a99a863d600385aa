#include "encoder.h"

#include "vectors.h"

#if defined(__AVX512BW__) && defined(__AVX512F__) && WIDTH == 16

#define TILE 12   /* rows of a tile: 24 sums, two vectors of weights, one number of a row */
#define LITTLE 4  /* rows of the tile for what is left over, if they are enough */
#define BLOCK 96  /* rows that go through a product together, while its weights are near; whole tiles */
#define NOTHING (-1e30f)

typedef struct {
    float *qkv;       /* [rows + TILE][3][width]: a tile may read, not use, what is behind the rows */
    float *mixed;     /* [rows][width] */
    float *out;       /* [BLOCK][width] */
    float *up;        /* [BLOCK][terms of a block of `down`] */
    int16_t *narrow;  /* [BLOCK][width], then as `up` */
    float *row_steps; /* [BLOCK][blocks], then [BLOCK] */
    float *keys;      /* [dim][padded longest] */
    float *values;    /* [longest][dim] */
    float *scores;    /* [TILE][padded longest] */
} Scratch;

static int padded(int count) { return (count + COLUMNS - 1) / COLUMNS * COLUMNS; }

static char *take(char **memory, int64_t bytes) {
    char *taken = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return taken;
}

static Scratch scratch_in(const Encoder *of, int rows, int longest, char **memory) {
    const int dim = of->width / of->heads;
    return (Scratch){
        .qkv = (float *)take(memory, 12LL * (rows + TILE) * of->width),
        .mixed = (float *)take(memory, 4LL * rows * of->width),
        .out = (float *)take(memory, 4LL * BLOCK * of->width),
        .up = (float *)take(memory, 4LL * BLOCK * of->inner),
        .narrow = (int16_t *)take(memory, 2LL * BLOCK * (of->width + of->inner)),
        .row_steps = (float *)take(memory, 4LL * BLOCK * (of->width / COLUMNS + 1)),
        .keys = (float *)take(memory, 4LL * dim * padded(longest)),
        .values = (float *)take(memory, 4LL * dim * longest),
        .scores = (float *)take(memory, 4LL * TILE * padded(longest)),
    };
}

/* ---------------------------------------------------------------- products */

/* Adds sixteen columns' pairs times one pair of a row. Written as an instruction where there is
 * one: through its intrinsic gcc keeps most of the sums in memory. */
INLINE void add_pair(__m512i *sums, __m512i columns, const int16_t *pair) {
    typedef int32_t Pair __attribute__((may_alias, aligned(2)));
#if defined(__AVX512VNNI__)
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(*sums) : "v"(columns), "m"(*(const Pair *)pair));
#else
    const __m512i both = _mm512_set1_epi32(*(const Pair *)pair);
    *sums = _mm512_add_epi32(*sums, _mm512_madd_epi16(columns, both));
#endif
}

/* Rows of `count` numbers in steps of their own. */
static void narrow_rows(const float *rows, int64_t stride, int num_rows, int count, int16_t *to,
                        int64_t to_stride, float *steps, int step_stride) {
    for (int r = 0; r < num_rows; r++) {
        const float *row = rows + r * stride;
        vf squares = {}, tops = {};
        for (int i = 0; i < count; i += WIDTH) {
            vf x = load_f32(row + i);
            squares += x * x;
            tops = larger(tops, (vf)_mm512_abs_ps((__m512)x));
        }
        const float norm = sqrtf(sum(squares)) / NORM, top = largest(tops) / LARGEST;
        const float step = norm > top ? norm : top;
        const float scale = step > 0.0f ? 1.0f / step : 0.0f;
        for (int i = 0; i < count; i += WIDTH) {
            __m512i whole = _mm512_cvtps_epi32((__m512)(load_f32(row + i) * scale));
            _mm256_storeu_si256((__m256i *)(to + r * to_stride + i), _mm512_cvtepi32_epi16(whole));
        }
        steps[r * step_stride] = step;
    }
}

typedef struct {
    const int16_t *narrow;
    int64_t narrow_stride;
    const float *row_steps;
    int step_stride;
    float *out;
    int64_t out_stride;
} Rows;

/* One tile: `rows` rows, of which `live` are kept, by one panel and one block of terms. `first`
 * writes bias + sums, others add to what is there. */
INLINE void tile(const Rows *of, int row, const int16_t *panel, int pairs, const float *steps,
                 const float *bias, int column, int rows, int live, int first) {
    __m512i sums[TILE][2];
    const int16_t *in = of->narrow + row * of->narrow_stride;
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    for (int p = 0; p < pairs; p++) {
        const __m512i low = _mm512_loadu_si512(panel + (int64_t)p * 2 * COLUMNS);
        const __m512i high = _mm512_loadu_si512(panel + (int64_t)p * 2 * COLUMNS + COLUMNS);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            add_pair(&sums[r][0], low, in + r * of->narrow_stride + 2 * p);
            add_pair(&sums[r][1], high, in + r * of->narrow_stride + 2 * p);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows && r < live; r++) {
        const float step = of->row_steps[(row + r) * of->step_stride];
        float *to = of->out + (row + r) * of->out_stride + column;
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            /* written out, so that every tile rounds alike */
            const vf scale = load_f32(steps + half * WIDTH) * step;
            const vf before = load_f32(first ? bias + half * WIDTH : to + half * WIDTH);
            const __m512 total = _mm512_cvtepi32_ps(sums[r][half]);
            store_f32(to + half * WIDTH, (vf)_mm512_fmadd_ps(total, (__m512)scale, (__m512)before));
        }
    }
}

static void tiles(const Rows *of, int num_rows, const int16_t *panel, int pairs, const float *steps,
                  const float *bias, int column, int first) {
    for (int row = 0; row < num_rows; row += TILE) {
        const int live = num_rows - row < TILE ? num_rows - row : TILE;
        if (live > LITTLE)
            tile(of, row, panel, pairs, steps, bias, column, TILE, live, first);
        else
            tile(of, row, panel, pairs, steps, bias, column, LITTLE, live, first);
    }
}

/* Columns [begin, end) of rows that were narrowed, by one block of terms. */
static void product(const Linear *linear, int block, int begin, int end, const Rows *of,
                    int num_rows, int first) {
    const int pairs = linear->in / linear->blocks / 2;
    const int64_t panel_numbers = (int64_t)pairs * 2 * COLUMNS;
    const int16_t *numbers = linear->numbers + block * (linear->out / COLUMNS) * panel_numbers;
    const float *steps = linear->steps + (int64_t)block * linear->out;
    for (int column = begin; column < end; column += COLUMNS)
        tiles(of, num_rows, numbers + column / COLUMNS * panel_numbers, pairs, steps + column,
              linear->bias + column, column - begin, first);
}

/* out = rows . weights + bias, all blocks. */
static void linear_rows(const Linear *linear, const float *in, int num_rows, float *out,
                        const Scratch *scratch) {
    const int terms = linear->in / linear->blocks;
    for (int block = 0; block < linear->blocks; block++) {
        narrow_rows(in + block * terms, linear->in, num_rows, terms, scratch->narrow, terms,
                    scratch->row_steps, 1);
        const Rows rows = {scratch->narrow, terms, scratch->row_steps, 1, out, linear->out};
        product(linear, block, 0, linear->out, &rows, num_rows, block == 0);
    }
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
    vf sums[TILE][2];
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
        mix_tile(a, a_stride, b, b_stride, terms, out, out_stride, scale, TILE, rows);
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
    float scales[TILE], shares[TILE];
    for (int t = 0; t < length; t++) {
        memcpy(scratch->values + t * dim, values + (int64_t)t * 3 * width, 4LL * dim);
        for (int d = 0; d < dim; d++)
            scratch->keys[d * across + t] = keys[(int64_t)t * 3 * width + d];
    }
    for (int d = 0; d < dim; d++)
        for (int t = length; t < across; t++) scratch->keys[d * across + t] = 0.0f;
    for (int r = 0; r < TILE; r++) scales[r] = scale;
    for (int begin = 0; begin < length; begin += TILE) {
        const int rows = length - begin < TILE ? length - begin : TILE;
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
    const int terms = layer->down.in / layer->down.blocks, width = of->width;
    int16_t *in = scratch->narrow, *between = in + (int64_t)BLOCK * width;
    float *in_steps = scratch->row_steps, *steps = in_steps + BLOCK * layer->up.blocks;
    const int in_terms = layer->up.in / layer->up.blocks;
    for (int block = 0; block < layer->up.blocks; block++)
        narrow_rows(hidden + block * in_terms, width, rows, in_terms, in + block * in_terms, width,
                    in_steps + block, layer->up.blocks);
    for (int part = 0; part < layer->down.blocks; part++) {
        for (int block = 0; block < layer->up.blocks; block++) {
            const Rows up = {in + block * in_terms, width, in_steps + block, layer->up.blocks,
                             scratch->up, terms};
            product(&layer->up, block, part * terms, (part + 1) * terms, &up, rows, block == 0);
        }
        gelu_rows(scratch->up, (int64_t)rows * terms);
        narrow_rows(scratch->up, terms, rows, terms, between, terms, steps, 1);
        const Rows down = {between, terms, steps, 1, scratch->out, width};
        product(&layer->down, part, 0, width, &down, rows, part == 0);
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
