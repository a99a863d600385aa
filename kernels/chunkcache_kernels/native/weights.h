/* Softmax weights of rows by position: what the observers of a pass add up. */
#ifndef CHUNKCACHE_WEIGHTS_H
#define CHUNKCACHE_WEIGHTS_H

#include "attend.h"
#include "team.h"

typedef struct {
    Attend of;                /* rows of one sequence */
    const int32_t *run_looks; /* [runs][2]: the first look of a run, how many */
    int32_t num_runs, context;
    float *out;               /* [rows][context], 0 where nothing is seen */
} Weights;

int64_t weights_scratch_bytes(const Weights *call);

/* Inside a piece of work. */
void weights_of_rows(Team *team, int member, const Weights *call, const LayerIO *io, char *scratch);

#endif
