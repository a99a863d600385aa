/* What a layer does to rows beside attention: products, norms, the gate, writing keys and values. */
#ifndef CHUNKCACHE_ROWS_H
#define CHUNKCACHE_ROWS_H

#include <stdint.h>

#include "attend.h"
#include "team.h"

typedef struct {
    const void *numbers;  /* [rows][cols]; NULL: there is no such weight */
    const float *scales;  /* I8: one a row */
    const float *bias;    /* [rows] or NULL */
    int32_t type, rows, cols, unused;
} Weight;

/* Inside a piece of work. y[m][r] = x[m] . row r + bias[r] (+ y[m][r] with `add`), fp32. */
void product(Team *team, int member, const Weight *weight, const float *x, float *y, int count,
             int add);

/* y = x / rms(x) * weight of one row. */
void norm_row(const float *x, const float *weight, float eps, float *y, int width);

/* Where the rows of a step are written, and what is done to their keys before. */
typedef struct {
    const int32_t *slots;         /* [rows]: page * PAGE + place in the page, or -1 */
    const float *query_norm, *key_norm;  /* [dim] or NULL */
    float eps;
    int32_t arena;                /* of `Attend.arenas` */
} Write;

/* Norms queries and keys in place (what observers see is behind it), turns the keys to their
 * positions and writes keys and values to their pages. `qkv` is [heads + 2 kv_heads][dim] a row. */
void write_row(const Attend *of, const Write *write, const LayerIO *io, void *qkv, int row);

#endif
