/* What attention and weights share: queries turned, pages widened, scores of a page. */
#ifndef CHUNKCACHE_KERNEL_H
#define CHUNKCACHE_KERNEL_H

#include "attend.h"
#include "vectors.h"

#define NEVER (-1e30f) /* the largest score of a row that has seen no key */
#define MOST_QUERIES 48

typedef struct {
    float *query;   /* [queries][dim] */
    float *mixed;   /* [queries][padded dim] */
    float *scores;  /* [pages of a block][queries][PAGE] */
    float *keys;    /* [dim][PAGE] */
    float *values;  /* [PAGE][padded dim] */
    float *top, *total;
} Scratch;

Scratch scratch_in(const Attend *of, char *memory);

/* One head of one row, turned by its distance to the segment's begin and scaled, in fp32. */
void turn_query(const Attend *of, const LayerIO *io, const int32_t *look, int head, float *to);

/* The keys of one head of a page as fp32 [dim][PAGE]: where they are, or widened into `into`. */
const float *page_keys(const Attend *of, const Arena *arena, const LayerIO *io, int page, int head,
                       float *into);

/* scores[q][t] = query[q] . keys[:, t], in powers of two. */
void score_queries(const float *query, const float *keys, float *scores, int dim, int queries);

#endif
