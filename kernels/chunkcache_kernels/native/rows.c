#include "rows.h"

#include "vectors.h"

#define AHEAD 8  /* rows, between what is multiplied and what is asked for */
#define BLOCK 16 /* weight rows that a member takes at once */
#if WIDTH == 16
#define MANY_ROWS 4
#else
#define MANY_ROWS 2
#endif

/* y[m][r] of `rows` weight rows and `count` inputs, all kept in registers. */
INLINE void dots(const Weight *weight, const float *x, float *y, int r, int rows, int count,
                 int type, int add) {
    const int cols = weight->cols, whole = cols / WIDTH * WIDTH;
    const int64_t at = (int64_t)r * cols;
    vf sums[4][4] = {};
    const int line = 64 / SIZE_OF[type]; /* numbers of a cache line */
    for (int c = 0; c < whole; c += WIDTH) {
        vf of[4];
        if (c % line == 0)
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++)
                ask_for(weight->numbers, at + (int64_t)(i + AHEAD) * cols + c, type);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++)
            of[i] = load_as_f32(weight->numbers, at + (int64_t)i * cols + c, type);
#pragma GCC unroll 4
        for (int m = 0; m < count; m++) {
            vf in = load_f32(x + (int64_t)m * cols + c);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) sums[i][m] += of[i] * in;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        const float scale = type == I8 ? weight->scales[r + i] : 1.0f;
        const float bias = weight->bias ? weight->bias[r + i] : 0.0f;
#pragma GCC unroll 4
        for (int m = 0; m < count; m++) {
            float total = sum(sums[i][m]);
            for (int c = whole; c < cols; c++)
                total += one_as_f32(weight->numbers, at + (int64_t)i * cols + c, type) *
                         x[(int64_t)m * cols + c];
            float *to = y + (int64_t)m * weight->rows + r + i;
            *to = total * scale + bias + (add ? *to : 0.0f);
        }
    }
}

INLINE void block_of(const Weight *weight, const float *x, float *y, int begin, int end, int count,
                     int type, int add) {
    int m = 0;
    for (; m + 4 <= count; m += 4) {
        const float *in = x + (int64_t)m * weight->cols;
        float *out = y + (int64_t)m * weight->rows;
        int r = begin;
        for (; r + MANY_ROWS <= end; r += MANY_ROWS)
            dots(weight, in, out, r, MANY_ROWS, 4, type, add);
        for (; r < end; r++) dots(weight, in, out, r, 1, 4, type, add);
    }
    for (; m + 2 <= count; m += 2) {
        const float *in = x + (int64_t)m * weight->cols;
        float *out = y + (int64_t)m * weight->rows;
        int r = begin;
        for (; r + MANY_ROWS <= end; r += MANY_ROWS)
            dots(weight, in, out, r, MANY_ROWS, 2, type, add);
        for (; r < end; r++) dots(weight, in, out, r, 1, 2, type, add);
    }
    for (; m < count; m++) {
        const float *in = x + (int64_t)m * weight->cols;
        float *out = y + (int64_t)m * weight->rows;
        int r = begin;
        for (; r + 4 <= end; r += 4) dots(weight, in, out, r, 4, 1, type, add);
        for (; r < end; r++) dots(weight, in, out, r, 1, 1, type, add);
    }
}

void product(Team *team, int member, const Weight *weight, const float *x, float *y, int count,
             int add) {
    for (int begin; (begin = team_take(team, member) * BLOCK) < weight->rows;) {
        int end = begin + BLOCK < weight->rows ? begin + BLOCK : weight->rows;
        if (weight->type == F32) block_of(weight, x, y, begin, end, count, F32, add);
        else if (weight->type == BF16) block_of(weight, x, y, begin, end, count, BF16, add);
        else if (weight->type == F16) block_of(weight, x, y, begin, end, count, F16, add);
        else block_of(weight, x, y, begin, end, count, I8, add);
    }
}

void norm_row(const float *x, const float *weight, float eps, float *y, int width) {
    vf squares = {};
    int i = 0;
    for (; i + WIDTH <= width; i += WIDTH) squares += load_f32(x + i) * load_f32(x + i);
    float total = sum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    const float scale = 1.0f / sqrtf(total / (float)width + eps);
    for (i = 0; i + WIDTH <= width; i += WIDTH)
        store_f32(y + i, load_f32(x + i) * scale * load_f32(weight + i));
    for (; i < width; i++) y[i] = x[i] * scale * weight[i];
}

/* A head's norm, in fp32, written back in the number type it came in. */
static void norm_head(void *of, int64_t at, int type, const float *weight, float eps, int dim) {
    float total = 0.0f;
    for (int i = 0; i < dim; i++) {
        const float x = one_as_f32(of, at + i, type);
        total += x * x;
    }
    const float scale = 1.0f / sqrtf(total / (float)dim + eps);
    for (int i = 0; i < dim; i++)
        store_one(of, at + i, type, one_as_f32(of, at + i, type) * scale * weight[i]);
}

static void write_key(const Attend *of, const Arena *arena, const LayerIO *io, const void *key,
                      int64_t at, int position, int64_t to) {
    const int half = of->rotary_dim / 2;
    int i = 0;
    if (half) {
        const float *cos = of->cos + (int64_t)position * of->rotary_dim;
        const float *sin = of->sin + (int64_t)position * of->rotary_dim;
        for (; i < half; i++) {
            const float low = one_as_f32(key, at + i, io->query_type);
            const float high = one_as_f32(key, at + i + half, io->query_type);
            store_one(arena->keys, to + (int64_t)i * PAGE, arena->type,
                      low * cos[i] - high * sin[i]);
            store_one(arena->keys, to + (int64_t)(i + half) * PAGE, arena->type,
                      high * cos[i + half] + low * sin[i + half]);
        }
        i = of->rotary_dim;
    }
    for (; i < of->dim; i++)
        store_one(arena->keys, to + (int64_t)i * PAGE, arena->type,
                  one_as_f32(key, at + i, io->query_type));
}

void write_row(const Attend *of, const Write *write, const LayerIO *io, void *qkv, int row) {
    const Arena *arena = of->arenas + write->arena;
    const int dim = of->dim, heads = of->heads, kv_heads = of->kv_heads, type = io->query_type;
    const int64_t begin = row * io->query_stride;
    for (int h = 0; write->query_norm && h < heads; h++)
        norm_head(qkv, begin + (int64_t)h * dim, type, write->query_norm, write->eps, dim);
    for (int h = 0; write->key_norm && h < kv_heads; h++)
        norm_head(qkv, begin + (int64_t)(heads + h) * dim, type, write->key_norm, write->eps, dim);
    if (write->slots[row] < 0) return;
    const int64_t page = write->slots[row] / PAGE, place = write->slots[row] % PAGE;
    for (int h = 0; h < kv_heads; h++) {
        const int64_t to = io->layer * arena->layer_numbers + (page * kv_heads + h) * dim * PAGE;
        write_key(of, arena, io, qkv, begin + (int64_t)(heads + h) * dim,
                  of->row_positions[row], to + place);
        const int64_t value = begin + (int64_t)(heads + kv_heads + h) * dim;
        for (int i = 0; i < dim; i++)
            store_one(arena->values, to + place * dim + i, arena->type,
                      one_as_f32(qkv, value + i, type));
    }
}
