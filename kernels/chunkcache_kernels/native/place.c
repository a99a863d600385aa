/* Layers of a chunk from a record to its pages: keys turned to their place in the chunk, in fp32,
 * and laid out channel by channel. Called by one thread, beside the team's work. */
#include "attend.h"
#include "squares.h"
#include "vectors.h"

typedef struct {
    const Arena *arena;
    const void *kv;        /* [layers][2][tokens][heads][dim], keys before RoPE */
    const int64_t *pages;  /* [ceil(tokens / PAGE)] */
    const float *cos, *sin; /* [tokens][rotary_dim]; 0: keys have no positions */
    float *rows;           /* [PAGE][dim] and [dim][PAGE], scratch */
    int32_t type;          /* of `kv` */
    int32_t first, layers; /* of the arena's layers */
    int32_t tokens, heads, dim, rotary_dim;
    int32_t plainly;       /* whole pages too are written number by number: the slow twin */
} Place;

typedef char vc __attribute__((vector_size(64), aligned(1)));

/* A row of few bytes: a call would cost more than it. */
INLINE void copy_row(char *restrict to, const char *restrict from, int bytes) {
    int i = 0;
    for (; i + 64 <= bytes; i += 64) *(vc *)(to + i) = *(const vc *)(from + i);
    if (i < bytes) memcpy(to + i, from + i, (size_t)(bytes - i));
}

INLINE void widen(const void *from, int64_t at, float *restrict to, int dim, int type) {
    int i = 0;
    for (; i + WIDTH <= dim; i += WIDTH) store_f32(to + i, load_as_f32(from, at + i, type));
    for (; i < dim; i++) to[i] = one_as_f32(from, at + i, type);
}

static void turn(float *restrict row, const float *restrict cos, const float *restrict sin,
                 int half) {
    for (int i = 0; i < half; i++) {
        const float low = row[i], high = row[i + half];
        row[i] = low * cos[i] - high * sin[i];
        row[i + half] = high * cos[i + half] + low * sin[i + half];
    }
}

/* Rows of PAGE tokens, `dim` long, to rows of channels. */
INLINE void turn_over(const float *restrict rows, float *restrict to, int dim) {
    for (int d = 0; d < dim; d++)
        for (int t = 0; t < PAGE; t++) to[d * PAGE + t] = rows[t * dim + d];
}

/* int8 numbers of `count` numbers, and their scale: by the largest, to even. */
INLINE float to_int8(const float *restrict from, int8_t *restrict to, int count) {
    vf tops = (vf){} + 1.17549435e-38f;
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        const vf x = load_f32(from + i);
        tops = larger(pick(x < 0.0f, -x, x), tops); /* in this order a NaN counts for nothing */
    }
    float most = largest(tops);
    for (; i < count; i++) {
        const float size = fabsf(from[i]);
        most = size > most ? size : most;
    }
    const float scale = most / 127.0f;
    for (i = 0; i < count; i++) to[i] = (int8_t)rintf(from[i] / scale);
    return scale;
}

#if HAS_SQUARES
/* What is read after a head's part of a page, and what is written after it. Beyond the last one it
 * may be no memory of ours: asking does not touch it. */
INLINE Ahead ahead_of(const Place *of, int layer, int page, int head, int from, int into) {
    const int64_t numbers = (int64_t)of->dim * PAGE, row = (int64_t)of->heads * of->dim;
    const int pages = (of->tokens + PAGE - 1) / PAGE, turns = page + 1 == pages;
    const int64_t token = turns ? 0 : (int64_t)(page + 1) * PAGE;
    const int64_t keys = (2ll * (layer + turns) * of->tokens + token) * row + head * numbers;
    const int64_t values = keys + of->tokens * row;
    const int same = head + 1 < of->heads, to_layer = of->first + layer + (!same && turns);
    const int64_t to_page = of->pages[same ? page : turns ? 0 : page + 1];
    const int64_t to = to_layer * of->arena->layer_numbers +
                       (to_page * of->heads + (same ? head + 1 : 0)) * numbers;
    return (Ahead){{(const char *)of->kv + keys * SIZE_OF[from],
                    (const char *)of->kv + values * SIZE_OF[from]},
                   {(char *)of->arena->keys + to * SIZE_OF[into],
                    (char *)of->arena->values + to * SIZE_OF[into]}};
}

/* The fast way for a page that is full; 0: it is none for these numbers. */
INLINE int keys_by_squares(const Place *of, int layer, int page, int head, int type) {
    if (of->plainly || !fits_squares(of->dim, of->rotary_dim)) return 0;
    const int64_t row = (int64_t)of->heads * of->dim, first = (int64_t)page * PAGE;
    const int64_t at = (2ll * layer * of->tokens + first) * row + (int64_t)head * of->dim;
    const int64_t to = (of->first + layer) * of->arena->layer_numbers +
                       (of->pages[page] * of->heads + head) * of->dim * PAGE;
    const Ahead ahead = ahead_of(of, layer, page, head, type, type);
    const PageKeys keys = {
        (const char *)of->kv + at * SIZE_OF[type], row, of->cos + first * of->rotary_dim,
        of->sin + first * of->rotary_dim, (char *)of->arena->keys + to * SIZE_OF[type], of->dim,
        of->rotary_dim, &ahead};
    squares_of_page(&keys, type);
    return 1;
}
#endif

INLINE void keys_of_page(const Place *of, int layer, int64_t page, int first, int count, int head,
                         int from, int into) {
    const Arena *arena = of->arena;
    const int dim = of->dim, half = of->rotary_dim / 2;
    const int64_t row = (int64_t)of->heads * dim;
    int64_t at = ((int64_t)layer * 2 * of->tokens + first) * row + (int64_t)head * dim;
    for (int t = 0; t < count; t++, at += row) {
        const int64_t angle = (int64_t)(first + t) * of->rotary_dim;
        widen(of->kv, at, of->rows + t * dim, dim, from);
        turn(of->rows + t * dim, of->cos + angle, of->sin + angle, half);
    }
    memset(of->rows + count * dim, 0, (size_t)(PAGE - count) * dim * sizeof(float));
    const int64_t channel = (page * of->heads + head) * dim, layers = of->first + layer;
    const int64_t to = layers * arena->layer_numbers + channel * PAGE;
    if (into == F32) {
        turn_over(of->rows, (float *)arena->keys + to, dim);
        return;
    }
    float *turned = of->rows + PAGE * dim;
    turn_over(of->rows, turned, dim);
    if (into == I8) {
        float *scales = arena->key_scales + layers * arena->layer_key_scales + channel;
        for (int d = 0; d < dim; d++)
            scales[d] = to_int8(turned + d * PAGE, (int8_t *)arena->keys + to + d * PAGE, PAGE);
    } else {
        for (int i = 0; i < dim * PAGE; i++) store_one(arena->keys, to + i, into, turned[i]);
    }
}

INLINE void values_of_page(const Place *of, int layer, int64_t page, int first, int count, int head,
                           int from, int into) {
    const Arena *arena = of->arena;
    const int dim = of->dim;
    const int64_t row = (int64_t)of->heads * dim, layers = of->first + layer;
    const int64_t token = (page * of->heads + head) * PAGE;
    int64_t at = (((int64_t)layer * 2 + 1) * of->tokens + first) * row + (int64_t)head * dim;
    int64_t to = layers * arena->layer_numbers + token * dim;
    float *scales = into == I8 ? arena->value_scales + layers * arena->layer_value_scales + token
                               : NULL;
    for (int t = 0; t < PAGE; t++, at += row, to += dim) {
        char *place = (char *)arena->values + to * SIZE_OF[into];
        if (t < count && from == into) { /* as bits: what a NaN carries stays */
            copy_row(place, (const char *)of->kv + at * SIZE_OF[from], dim * SIZE_OF[from]);
        } else if (t < count) {
            widen(of->kv, at, of->rows, dim, from);
            if (into == I8) scales[t] = to_int8(of->rows, (int8_t *)place, dim);
            else
                for (int i = 0; i < dim; i++) store_one(place, i, into, of->rows[i]);
        } else {
            memset(place, 0, (size_t)dim * SIZE_OF[into]);
            if (into == I8) scales[t] = 1.17549435e-38f / 127.0f;
        }
    }
}

INLINE void layer_of(const Place *of, int layer, int from, int into) {
    for (int first = 0, page = 0; first < of->tokens; first += PAGE, page++) {
        const int count = of->tokens - first < PAGE ? of->tokens - first : PAGE;
        for (int head = 0; head < of->heads; head++) {
#if HAS_SQUARES
            const int is_known = from == into && (from == F32 || from == BF16);
            if (!is_known || count < PAGE || !keys_by_squares(of, layer, page, head, from))
#endif
                keys_of_page(of, layer, of->pages[page], first, count, head, from, into);
            values_of_page(of, layer, of->pages[page], first, count, head, from, into);
        }
    }
}

static __attribute__((noinline)) void layer_of_any(const Place *of, int layer) {
    layer_of(of, layer, of->type, of->arena->type);
}

void chunkcache_place(const Place *of) {
    const int from = of->type, into = of->arena->type;
    for (int layer = 0; layer < of->layers; layer++) {
        if (from == F32 && into == F32) layer_of(of, layer, F32, F32);
        else if (from == BF16 && into == BF16) layer_of(of, layer, BF16, BF16);
        else if (from == F32 && into == I8) layer_of(of, layer, F32, I8);
        else layer_of_any(of, layer);
    }
}
