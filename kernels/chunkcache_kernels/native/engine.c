/* What Python calls. Every function is one piece of work of the team. */
#include <stdlib.h>

#include "attend.h"
#include "rows.h"
#include "vectors.h"
#include "weights.h"

/* ---------------------------------------------------------------- many rows, one part at a time */

typedef struct {
    const Attend *of;
    const LayerIO *io;
    const Write *write;
    void *qkv;
    char *scratch;
} AttendCall;

static void attend_work(Team *team, int member, void *of) {
    const AttendCall *call = of;
    if (call->write) {
        for (int row; (row = team_take(team, member)) < call->of->num_rows;)
            write_row(call->of, call->write, call->io, call->qkv, row);
        team_meet(team, member);
    }
    attend_parts(team, member, call->of, call->io,
                 call->scratch + member * attend_scratch_bytes(call->of));
    team_meet(team, member);
    attend_merge(team, member, call->of, call->io);
}

static void write_work(Team *team, int member, void *of) {
    const AttendCall *call = of;
    for (int row; (row = team_take(team, member)) < call->of->num_rows;)
        write_row(call->of, call->write, call->io, call->qkv, row);
}

/* Attention of rows that are written already. */
void chunkcache_attend(Team *team, const Attend *of, const LayerIO *io, char *scratch) {
    AttendCall call = {of, io, NULL, NULL, scratch};
    team_run(team, attend_work, &call);
}

void chunkcache_write(Team *team, const Attend *of, const Write *write, const LayerIO *io,
                      void *qkv) {
    AttendCall call = {of, io, write, qkv, NULL};
    team_run(team, write_work, &call);
}

typedef struct {
    const Weights *of;
    const LayerIO *io;
    char *scratch;
} WeightsCall;

static void weights_work(Team *team, int member, void *of) {
    const WeightsCall *call = of;
    weights_of_rows(team, member, call->of, call->io,
                    call->scratch + member * weights_scratch_bytes(call->of));
}

int64_t chunkcache_weights_scratch_bytes(const Weights *of) { return weights_scratch_bytes(of); }

void chunkcache_weights(Team *team, const Weights *of, const LayerIO *io, char *scratch) {
    WeightsCall call = {of, io, scratch};
    team_run(team, weights_work, &call);
}

int64_t chunkcache_scratch_bytes(const Attend *of) { return attend_scratch_bytes(of); }

typedef struct {
    const Weight *weight;
    const float *x;
    float *y;
    int count, add;
} ProductCall;

static void product_work(Team *team, int member, void *of) {
    const ProductCall *call = of;
    product(team, member, call->weight, call->x, call->y, call->count, call->add);
}

void chunkcache_product(Team *team, const Weight *weight, const float *x, float *y, int count) {
    ProductCall call = {weight, x, y, count, 0};
    team_run(team, product_work, &call);
}

typedef struct {
    const void *in;
    void *out;
    const float *weight;
    float eps;
    int type, rows, width;
} RowsCall;

INLINE void norm_rows(const RowsCall *call, int row, int type) {
    const int width = call->width, whole = width / WIDTH * WIDTH;
    const int64_t at = (int64_t)row * width;
    vf squares = {};
    for (int i = 0; i < whole; i += WIDTH) {
        vf x = load_as_f32(call->in, at + i, type);
        squares += x * x;
    }
    float total = sum(squares);
    for (int i = whole; i < width; i++) {
        const float x = one_as_f32(call->in, at + i, type);
        total += x * x;
    }
    const float scale = 1.0f / sqrtf(total / (float)width + call->eps);
    for (int i = 0; i < width; i++)
        store_one(call->out, at + i, type,
                  one_as_f32(call->in, at + i, type) * scale * call->weight[i]);
}

static void norm_work(Team *team, int member, void *of) {
    const RowsCall *call = of;
    const int block = 16;
    for (int begin; (begin = team_take(team, member) * block) < call->rows;)
        for (int row = begin; row < begin + block && row < call->rows; row++) {
            if (call->type == F32) norm_rows(call, row, F32);
            else if (call->type == BF16) norm_rows(call, row, BF16);
            else norm_rows(call, row, F16);
        }
}

void chunkcache_norm(Team *team, const void *in, void *out, const float *weight, float eps,
                     int type, int rows, int width) {
    RowsCall call = {in, out, weight, eps, type, rows, width};
    team_run(team, norm_work, &call);
}

INLINE void silu_rows(const RowsCall *call, int row, int type) {
    const int width = call->width;
    const int64_t from = 2 * (int64_t)row * width, to = (int64_t)row * width;
    int i = 0;
    for (; i + WIDTH <= width; i += WIDTH) {
        vf y = gated(load_as_f32(call->in, from + i, type),
                     load_as_f32(call->in, from + width + i, type));
        for (int k = 0; k < WIDTH; k++) store_one(call->out, to + i + k, type, y[k]);
    }
    for (; i < width; i++) {
        vf y = gated((vf){} + one_as_f32(call->in, from + i, type),
                     (vf){} + one_as_f32(call->in, from + width + i, type));
        store_one(call->out, to + i, type, y[0]);
    }
}

static void silu_work(Team *team, int member, void *of) {
    const RowsCall *call = of;
    const int block = 8;
    for (int begin; (begin = team_take(team, member) * block) < call->rows;)
        for (int row = begin; row < begin + block && row < call->rows; row++) {
            if (call->type == F32) silu_rows(call, row, F32);
            else if (call->type == BF16) silu_rows(call, row, BF16);
            else silu_rows(call, row, F16);
        }
}

/* out[r] = silu(gate[r]) * up[r] of rows [gate | up], each `width` wide. */
void chunkcache_silu(Team *team, const void *in, void *out, int type, int rows, int width) {
    RowsCall call = {in, out, NULL, 0.0f, type, rows, width};
    team_run(team, silu_work, &call);
}

/* ---------------------------------------------------------------- few rows, all layers in one go */

typedef struct {
    Weight qkv, out, gate_up, down;
    const float *input_norm, *mlp_norm, *query_norm, *key_norm;
    int32_t turned, unused; /* whether the layer has positions */
} Layer;

typedef struct {
    const Layer *layers;
    int32_t first, end;
    int32_t count, width, inner; /* rows of the step, hidden size, width of the gate */
    float eps;
    const Attend *turned, *still; /* the same but for the angles */
    const int32_t *slots;
    int32_t arena, unused;
    float *hidden;    /* [count][width], in and out */
    float *normed;    /* [members][count][width] */
    float *qkv;       /* [count][heads + 2 kv_heads][dim] */
    float *attended;  /* [count][heads][dim] */
    float *gate_up;   /* [count][2 inner] */
    float *gated;     /* [count][inner] */
    char *scratch;
} Layers;

static void gate_part(Team *team, int member, const Layers *of) {
    const RowsCall call = {of->gate_up, of->gated, NULL, 0.0f, F32, of->count, of->inner};
    for (int row; (row = team_take(team, member)) < of->count;) silu_rows(&call, row, F32);
}

static void layer_work(Team *team, int member, const Layers *of, int index) {
    const Layer *layer = of->layers + index;
    const Attend *attend = layer->turned ? of->turned : of->still;
    const int qkv_width = (attend->heads + 2 * attend->kv_heads) * attend->dim;
    const LayerIO io = {of->qkv, of->attended, qkv_width, attend->heads * attend->dim, F32, F32, index,
                        NULL};
    const Write write = {of->slots, layer->query_norm, layer->key_norm, of->eps, of->arena};
    float *normed = of->normed + (int64_t)member * of->count * of->width;
    for (int m = 0; m < of->count; m++)
        norm_row(of->hidden + (int64_t)m * of->width, layer->input_norm, of->eps,
                 normed + (int64_t)m * of->width, of->width);
    product(team, member, &layer->qkv, normed, of->qkv, of->count, 0);
    team_meet(team, member);
    for (int row; (row = team_take(team, member)) < of->count;)
        write_row(attend, &write, &io, of->qkv, row);
    team_meet(team, member);
    attend_parts(team, member, attend, &io, of->scratch + member * attend_scratch_bytes(attend));
    team_meet(team, member);
    attend_merge(team, member, attend, &io);
    team_meet(team, member);
    product(team, member, &layer->out, of->attended, of->hidden, of->count, 1);
    team_meet(team, member);
    for (int m = 0; m < of->count; m++)
        norm_row(of->hidden + (int64_t)m * of->width, layer->mlp_norm, of->eps,
                 normed + (int64_t)m * of->width, of->width);
    product(team, member, &layer->gate_up, normed, of->gate_up, of->count, 0);
    team_meet(team, member);
    gate_part(team, member, of);
    team_meet(team, member);
    product(team, member, &layer->down, of->gated, of->hidden, of->count, 1);
    team_meet(team, member);
}

static void layers_work(Team *team, int member, void *of) {
    const Layers *call = of;
    for (int index = call->first; index < call->end; index++) layer_work(team, member, call, index);
}

void chunkcache_layers(Team *team, const Layers *of) {
    team_run(team, layers_work, (void *)of);
}
