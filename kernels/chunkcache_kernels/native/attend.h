/* Attention of rows over pages; the arrays of a step are made once (`layout.py`), for all layers.
 *
 * A page holds PAGE tokens: keys [heads][dim][PAGE], values [heads][PAGE][dim]. */
#ifndef CHUNKCACHE_ATTEND_H
#define CHUNKCACHE_ATTEND_H

#include <stdint.h>

#include "team.h"

typedef struct {
    void *keys, *values;               /* of layer 0 */
    float *key_scales, *value_scales;  /* I8: [pages][heads][dim] and [pages][heads][PAGE] */
    int64_t layer_numbers;             /* from one layer to the next, in keys and in values */
    int64_t layer_key_scales, layer_value_scales;
    int32_t type;
} Arena;

typedef struct {
    const Arena *arenas;
    const int32_t *row_positions;  /* [rows] */
    const int32_t *runs;           /* [runs][3]: arena, first of its pages in `pages`, their count */
    const int32_t *pages;          /* page numbers */
    const int32_t *looks;          /* [looks][4]: row, turn, its first key position, its part */
    const int32_t *key_positions;  /* PAGE for each page of a look; above every row: hidden */
    const int32_t *items;          /* [items][3]: run, first look, number of looks */
    const int32_t *row_parts;      /* [rows + 1]: where the parts of a row begin */
    int32_t num_rows, num_items;
    int32_t heads, kv_heads, dim;
    int32_t rotary_dim;            /* 0: keys and queries are not turned */
    const float *cos, *sin;        /* [positions][rotary_dim] */
    float scale;
    float softcap;                 /* c: scores are c tanh(score / c); 0: as they are */
    int32_t window;                /* positions up to its own that a row sees; 0: all */
    int32_t block;                 /* a row sees keys of its own block of positions; 0: of all */
    float *parts;                  /* [parts][heads][dim + 2]: mixed values, largest score, sum */
} Attend;

typedef struct {
    const void *query;             /* [rows] of [heads][dim], before RoPE */
    void *out;                     /* [rows] of [heads][dim] */
    int64_t query_stride, out_stride;
    int32_t query_type, out_type;
    int32_t layer;
    const float *sinks;            /* [heads] scores that take weight and give no value, or NULL */
} LayerIO;

/* A row sees the keys above its floor, up to its own position. */
static inline int32_t floor_of(const Attend *of, int32_t position) {
    const int32_t by_window = of->window ? position - of->window : INT32_MIN;
    const int32_t by_block = of->block ? position - position % of->block - 1 : INT32_MIN;
    return by_window > by_block ? by_window : by_block;
}

/* Bytes of scratch that one member needs. */
int64_t attend_scratch_bytes(const Attend *of);

/* Inside a piece of work: parts of all items, then (behind a meeting of its own) the merged rows.
 * `scratch` belongs to the member. */
void attend_parts(Team *team, int member, const Attend *of, const LayerIO *io, char *scratch);
void attend_merge(Team *team, int member, const Attend *of, const LayerIO *io);

#endif
