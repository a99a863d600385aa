#include "kernel.h"

#define LOG2_E 1.4426950408889634f
#if WIDTH == 16
#define QUERIES 8 /* query vectors of one product: as many as fit the registers */
#else
#define QUERIES (PAGE_VECTORS > 2 ? 3 : 4)
#endif
#define MIXED 4 /* query vectors of one product of weights and values */
/* Pages that are weighed together: a query's largest score and sum cost the same for one page. */
#define BLOCK (PAGE < KEYS_AT_ONCE ? KEYS_AT_ONCE / PAGE : 1)
#define KEYS_AT_ONCE 128

static int padded(int dim) { return (dim + WIDTH - 1) / WIDTH * WIDTH; }

static int most_queries(const Attend *of) {
    int group = of->heads / of->kv_heads;
    int queries = group > MOST_QUERIES ? group : MOST_QUERIES / group * group;
    return (queries + 11) / 12 * 12 + 12; /* whole products of 3, 4 and 8 */
}

int64_t attend_scratch_bytes(const Attend *of) {
    int64_t queries = most_queries(of), dim = padded(of->dim);
    return 4 * (queries * (2 * dim + BLOCK * PAGE + 2) + 2 * (int64_t)PAGE * dim) + 1024;
}

Scratch scratch_in(const Attend *of, char *memory) {
    int64_t queries = most_queries(of), dim = padded(of->dim);
    float *at = (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    Scratch s;
    s.query = at;
    s.mixed = s.query + queries * dim;
    s.scores = s.mixed + queries * dim;
    s.keys = s.scores + queries * BLOCK * PAGE;
    s.values = s.keys + (int64_t)PAGE * dim;
    s.top = s.values + (int64_t)PAGE * dim;
    s.total = s.top + queries;
    return s;
}

INLINE void turn_typed(const Attend *of, const LayerIO *io, const int32_t *look, int head, float *to,
                       int type) {
    const int dim = of->dim, half = of->rotary_dim / 2;
    const int64_t at = look[0] * io->query_stride + (int64_t)head * dim;
    const float scale = of->scale * LOG2_E;
    const int64_t angle = (int64_t)(of->row_positions[look[0]] - look[1]) * of->rotary_dim;
    const float *restrict cos = of->cos + angle, *restrict sin = of->sin + angle;
    float *restrict out = to;
    for (int i = 0; i < half; i++) {
        const float low = one_as_f32(io->query, at + i, type);
        const float high = one_as_f32(io->query, at + i + half, type);
        out[i] = (low * cos[i] - high * sin[i]) * scale;
        out[i + half] = (high * cos[i + half] + low * sin[i + half]) * scale;
    }
    for (int i = 2 * half; i < dim; i++) out[i] = one_as_f32(io->query, at + i, type) * scale;
}

void turn_query(const Attend *of, const LayerIO *io, const int32_t *look, int head, float *to) {
    if (io->query_type == F32) turn_typed(of, io, look, head, to, F32);
    else if (io->query_type == BF16) turn_typed(of, io, look, head, to, BF16);
    else turn_typed(of, io, look, head, to, F16);
}

/* scores[q][t] = query[q] . keys[:, t] for `count` queries at once. */
INLINE void score(const float *query, const float *keys, float *scores, int dim, int count) {
    vf sums[QUERIES][PAGE_VECTORS] = {};
    for (int d = 0; d < dim; d++) {
        vf key[PAGE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < PAGE_VECTORS; v++) key[v] = load_f32(keys + d * PAGE + v * WIDTH);
#pragma GCC unroll 8
        for (int q = 0; q < count; q++) {
            float one = query[q * dim + d];
#pragma GCC unroll 8
            for (int v = 0; v < PAGE_VECTORS; v++) sums[q][v] += key[v] * one;
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < count; q++)
#pragma GCC unroll 8
        for (int v = 0; v < PAGE_VECTORS; v++)
            store_f32(scores + q * PAGE + v * WIDTH, sums[q][v]);
}

void score_queries(const float *query, const float *keys, float *scores, int dim, int queries) {
    int q = 0;
    for (; q + QUERIES <= queries; q += QUERIES)
        score(query + q * dim, keys, scores + q * PAGE, dim, QUERIES);
    for (int left; (left = queries - q) > 0; q += left > 4 ? 4 : left) {
        const float *some = query + q * dim;
        float *to = scores + q * PAGE;
        if (left >= 4 && QUERIES >= 4) score(some, keys, to, dim, QUERIES >= 4 ? 4 : 1);
        else if (left >= 3) score(some, keys, to, dim, 3);
        else if (left == 2) score(some, keys, to, dim, 2);
        else score(some, keys, to, dim, 1);
    }
}

/* mixed[q] += sum over the seen tokens of weights[q][t] . values[t], `vectors` of it at once. */
INLINE void mix(const float *weights, const float *values, float *mixed, int stride,
                const int *seen, int num_seen, int vectors) {
    vf sums[MIXED][4];
#pragma GCC unroll 4
    for (int q = 0; q < MIXED; q++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[q][v] = load_f32(mixed + q * stride + v * WIDTH);
    for (int i = 0; i < num_seen; i++) {
        const float *value = values + (int64_t)seen[i] * stride;
        vf of[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) of[v] = load_f32(value + v * WIDTH);
#pragma GCC unroll 4
        for (int q = 0; q < MIXED; q++) {
            float one = weights[q * PAGE + seen[i]];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[q][v] += of[v] * one;
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < MIXED; q++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store_f32(mixed + q * stride + v * WIDTH, sums[q][v]);
}

INLINE void widen_page(const void *from, int64_t at, int type, float *to, int rows, int width,
                       int stride, const float *row_scales) {
    for (int r = 0; r < rows; r++) {
        int c = 0;
        const float scale = row_scales ? row_scales[r] : 1.0f;
        for (; c + WIDTH <= width; c += WIDTH)
            store_f32(to + r * stride + c, load_as_f32(from, at + (int64_t)r * width + c, type) * scale);
        for (; c < width; c++)
            to[r * stride + c] = one_as_f32(from, at + (int64_t)r * width + c, type) * scale;
        for (; c < stride; c++) to[r * stride + c] = 0.0f;
    }
}

static void widen(const void *from, int64_t at, int type, float *to, int rows, int width,
                  int stride, const float *row_scales) {
    if (type == F32) widen_page(from, at, F32, to, rows, width, stride, NULL);
    else if (type == BF16) widen_page(from, at, BF16, to, rows, width, stride, NULL);
    else if (type == F16) widen_page(from, at, F16, to, rows, width, stride, NULL);
    else widen_page(from, at, I8, to, rows, width, stride, row_scales);
}

const float *page_keys(const Attend *of, const Arena *arena, const LayerIO *io, int page, int head,
                       float *into) {
    const int64_t index = (int64_t)page * of->kv_heads + head;
    const int64_t at = io->layer * arena->layer_numbers + index * of->dim * PAGE;
    if (arena->type == F32) return (const float *)arena->keys + at;
    const float *scales = arena->type == I8
        ? arena->key_scales + io->layer * arena->layer_key_scales + index * of->dim : NULL;
    widen(arena->keys, at, arena->type, into, of->dim, PAGE, PAGE, scales);
    return into;
}

static const float *page_values(const Attend *of, const Arena *arena, const LayerIO *io, int page,
                                int head, float *into) {
    const int64_t index = (int64_t)page * of->kv_heads + head;
    const int64_t at = io->layer * arena->layer_numbers + index * of->dim * PAGE;
    if (arena->type == F32 && of->dim % WIDTH == 0) return (const float *)arena->values + at;
    const float *scales = arena->type == I8
        ? arena->value_scales + io->layer * arena->layer_value_scales + index * PAGE : NULL;
    widen(arena->values, at, arena->type, into, PAGE, of->dim, padded(of->dim), scales);
    return into;
}

/* Pages of a run that are attended together. */
typedef struct {
    int count;
    int page[BLOCK];     /* of the run */
    int num_seen[BLOCK]; /* tokens that any of the looks sees */
    int seen[BLOCK][PAGE + 1];
} Pages;

/* Scores -> weights of one query vector over a block, against the largest score so far. `step` is
 * from page to page in the scores, `keys` are the positions of the run's keys. */
INLINE void weigh(float *scores, int64_t step, const Pages *of, const int32_t *keys, int position,
                  int floor, float cap, float *top, float *total, float *mixed, int dim) {
    vf most = (vf){} + NEVER;
    for (int p = 0; p < of->count; p++)
        for (int v = 0; v < PAGE_VECTORS; v++) {
            float *at = scores + p * step + v * WIDTH;
            const vi stands = *(const vi *)(keys + (int64_t)of->page[p] * PAGE + v * WIDTH);
            const vi sees = (stands <= position) & (stands > floor);
            vf seen = pick(sees, capped(load_f32(at), cap), (vf){} + 2 * NEVER);
            most = larger(most, seen);
            store_f32(at, seen);
        }
    const float found = largest(most), higher = found > *top ? found : *top;
    const vf fade = weight_of((vf){} + (*top - higher)); /* 1 more often than not: no branch */
    for (int d = 0; d < dim; d += WIDTH) store_f32(mixed + d, load_f32(mixed + d) * fade);
    vf sums = {};
    for (int p = 0; p < of->count; p++)
        for (int v = 0; v < PAGE_VECTORS; v++) {
            float *at = scores + p * step + v * WIDTH;
            vf weight = weight_of(load_f32(at) - higher);
            sums += weight;
            store_f32(at, weight);
        }
    *top = higher;
    *total = *total * fade[0] + sum(sums);
}

/* Which tokens of a page any of the looks sees; how many. */
static int seen_tokens(const Attend *of, const int32_t *looks, int num_looks, int page, int *seen) {
    vi any[PAGE_VECTORS] = {};
    for (int l = 0; l < num_looks; l++) {
        const int32_t *look = looks + 4 * l;
        const int32_t *at = of->key_positions + look[2] + (int64_t)page * PAGE;
        const int32_t position = of->row_positions[look[0]];
        for (int v = 0; v < PAGE_VECTORS; v++)
            any[v] |= (*(const vi *)(at + v * WIDTH) <= position) &
                      (*(const vi *)(at + v * WIDTH) > floor_of(of, position));
    }
    int count = 0;
    for (int t = 0; t < PAGE; t++) {
        seen[count] = t;
        count += any[t / WIDTH][t % WIDTH] != 0;
    }
    return count;
}

static void mix_page(const float *weights, const float *values, float *mixed, int queries,
                     int stride, const int *seen, int num_seen) {
    for (int q = 0; q < queries; q += MIXED, weights += MIXED * PAGE, mixed += MIXED * stride)
        for (int d = 0; d < stride; d += 4 * WIDTH) {
            const int left = (stride - d) / WIDTH;
            const float *from = values + d;
            float *to = mixed + d;
            if (left >= 4) mix(weights, from, to, stride, seen, num_seen, 4);
            else if (left == 3) mix(weights, from, to, stride, seen, num_seen, 3);
            else if (left == 2) mix(weights, from, to, stride, seen, num_seen, 2);
            else mix(weights, from, to, stride, seen, num_seen, 1);
        }
}

static void attend_block(const Attend *of, const LayerIO *io, const int32_t *item, int head,
                         const Pages *block, Scratch *s) {
    const int32_t *run = of->runs + 3 * item[0], *looks = of->looks + 4 * (int64_t)item[1];
    const int group = of->heads / of->kv_heads, queries = item[2] * group;
    const int dim = of->dim, stride = padded(dim);
    const int64_t step = (int64_t)most_queries(of) * PAGE;
    const Arena *arena = of->arenas + run[0];
    const int32_t *pages = of->pages + run[1];
    for (int p = 0; p < block->count; p++) {
        const float *keys = page_keys(of, arena, io, pages[block->page[p]], head, s->keys);
        score_queries(s->query, keys, s->scores + p * step, dim, queries);
    }
    for (int l = 0; l < item[2]; l++, looks += 4) {
        const int32_t position = of->row_positions[looks[0]], floor = floor_of(of, position);
        for (int q = l * group; q < (l + 1) * group; q++)
            weigh(s->scores + q * PAGE, step, block, of->key_positions + looks[2], position, floor,
                  of->softcap * LOG2_E, s->top + q, s->total + q, s->mixed + q * stride, stride);
    }
    for (int p = 0; p < block->count; p++) {
        const float *values = page_values(of, arena, io, pages[block->page[p]], head, s->values);
        mix_page(s->scores + p * step, values, s->mixed, queries, stride, block->seen[p],
                 block->num_seen[p]);
    }
}

static void attend_item(const Attend *of, const LayerIO *io, const int32_t *item, int head,
                        Scratch *s) {
    const int32_t *run = of->runs + 3 * item[0], *looks = of->looks + 4 * (int64_t)item[1];
    const int num_looks = item[2], group = of->heads / of->kv_heads;
    const int queries = num_looks * group, dim = of->dim, stride = padded(dim);
    for (int q = 0; q < queries; q++) {
        turn_query(of, io, looks + 4 * (q / group), head * group + q % group, s->query + q * dim);
        s->top[q] = NEVER;
        s->total[q] = 0.0f;
    }
    const int whole = (queries + MIXED - 1) / MIXED * MIXED;
    memset(s->mixed, 0, sizeof(float) * (size_t)whole * stride);
    for (int p = 0; p < BLOCK; p++)
        memset(s->scores + ((int64_t)p * most_queries(of) + queries) * PAGE, 0,
               sizeof(float) * (size_t)(whole - queries) * PAGE);
    Pages block = {0};
    for (int page = 0; page < run[2]; page++) {
        const int p = block.count;
        block.page[p] = page;
        block.num_seen[p] = seen_tokens(of, looks, num_looks, page, block.seen[p]);
        block.count += block.num_seen[p] > 0;
        if (block.count == BLOCK || (page == run[2] - 1 && block.count)) {
            attend_block(of, io, item, head, &block, s);
            block.count = 0;
        }
    }
    for (int q = 0; q < queries; q++) {
        const int64_t part = looks[4 * (q / group) + 3];
        float *to = of->parts + (part * of->heads + head * group + q % group) * (dim + 2);
        memcpy(to, s->mixed + q * stride, sizeof(float) * (size_t)dim);
        to[dim] = s->top[q];
        to[dim + 1] = s->total[q];
    }
}

void attend_parts(Team *team, int member, const Attend *of, const LayerIO *io, char *scratch) {
    Scratch s = scratch_in(of, scratch);
    const int all = of->num_items * of->kv_heads;
    for (int i; (i = team_take(team, member)) < all;)
        attend_item(of, io, of->items + 3 * (i / of->kv_heads), i % of->kv_heads, &s);
}

INLINE void merge_typed(const Attend *of, const LayerIO *io, int row, int type) {
    const int dim = of->dim, size = dim + 2;
    for (int head = 0; head < of->heads; head++) {
        const int first = of->row_parts[row], end = of->row_parts[row + 1];
        const int64_t step = (int64_t)of->heads * size;
        float *own = of->parts + first * step + head * size;
        const float sink = io->sinks ? io->sinks[head] * LOG2_E : NEVER;
        float top = sink, total = 0.0f;
        for (int p = 0; p < end - first; p++)
            if (own[p * step + dim] > top) top = own[p * step + dim];
        for (int p = 0; p < end - first; p++) {
            float *part = own + p * step;
            const float weight = part[dim + 1] == 0.0f ? 0.0f : exp2f(part[dim] - top);
            total += weight * part[dim + 1];
            if (p == 0)
                for (int d = 0; d < dim; d++) own[d] *= weight;
            else
                for (int d = 0; d < dim; d++) own[d] += weight * part[d];
        }
        if (io->sinks) total += exp2f(sink - top);
        const float share = total == 0.0f ? 0.0f : 1.0f / total;
        const int64_t at = row * io->out_stride + (int64_t)head * dim;
        for (int d = 0; d < dim; d++) store_one(io->out, at + d, type, own[d] * share);
    }
}

static void merge_row(const Attend *of, const LayerIO *io, int row) {
    if (io->out_type == F32) merge_typed(of, io, row, F32);
    else if (io->out_type == BF16) merge_typed(of, io, row, BF16);
    else merge_typed(of, io, row, F16);
}

void attend_merge(Team *team, int member, const Attend *of, const LayerIO *io) {
    const int block = 4;
    for (int i; (i = team_take(team, member) * block) < of->num_rows;)
        for (int row = i; row < i + block && row < of->num_rows; row++) merge_row(of, io, row);
}
