/* Where rows look: softmax weights of one sequence's rows over its positions, mean over heads. */
#include "weights.h"

#include "kernel.h"

/* A block of rows against all pages they may see: scores of one key head, then their weights. */
typedef struct {
    float *scores; /* [queries][keys] */
    float *mean;   /* [rows][keys], summed over heads */
    const Weights *call;
    int first_row, rows; /* of the block */
} Block;

static int num_keys(const Attend *of, int num_runs) {
    int pages = 0;
    for (int r = 0; r < num_runs; r++) pages += of->runs[3 * r + 2];
    return pages * PAGE;
}

static int block_rows(const Attend *of) {
    const int group = of->heads / of->kv_heads;
    return group > MOST_QUERIES ? 1 : MOST_QUERIES / group;
}

int64_t weights_scratch_bytes(const Weights *call) {
    const Attend *of = &call->of;
    const int64_t keys = num_keys(of, call->num_runs), rows = block_rows(of);
    return attend_scratch_bytes(of) + 4 * keys * (rows * (of->heads / of->kv_heads) + rows) + 64;
}

/* Scores of the block's rows over one run, from `at` on in their rows of scores. */
static void score_run(Block *b, const LayerIO *io, int run, int head, int at, int keys, Scratch *s) {
    const Attend *of = &b->call->of;
    const int32_t *looks = b->call->run_looks + 2 * run;
    const int group = of->heads / of->kv_heads, dim = of->dim, queries = b->rows * group;
    const int32_t *first = of->looks + 4 * (int64_t)looks[0];
    /* the rows that look at a run are its sequence's last ones */
    const int before = b->first_row < first[0] ? first[0] - b->first_row : 0;
    for (int q = before * group; q < queries; q++)
        turn_query(of, io, first + 4 * (b->first_row + q / group - first[0]),
                   head * group + q % group, s->query + q * dim);
    const int32_t *numbers = of->runs + 3 * run;
    const float cap = of->softcap * 1.4426950408889634f; /* scores are of powers of 2 */
    for (int page = 0; page < numbers[2]; page++) {
        const int32_t *positions = of->key_positions + first[2] + (int64_t)page * PAGE;
        const int last = of->row_positions[b->first_row + b->rows - 1];
        const int lowest = floor_of(of, of->row_positions[b->first_row]);
        int seen = 0;
        for (int t = 0; t < PAGE; t++) seen |= positions[t] <= last && positions[t] > lowest;
        if (seen && before < b->rows) {
            const float *found = page_keys(of, of->arenas + numbers[0], io,
                                           of->pages[numbers[1] + page], head, s->keys);
            score_queries(s->query + before * group * dim, found,
                          s->scores + before * group * PAGE, dim, queries - before * group);
        }
        for (int q = 0; q < queries; q++) {
            const int position = of->row_positions[b->first_row + q / group];
            float *to = b->scores + (int64_t)q * keys + at + page * PAGE;
            for (int v = 0; v < PAGE_VECTORS; v++) {
                const vi stands = *(const vi *)(positions + v * WIDTH);
                const vi sees = (stands <= position) & (stands > floor_of(of, position));
                vf score = capped(load_f32(s->scores + q * PAGE + v * WIDTH), cap);
                store_f32(to + v * WIDTH, pick(sees, score, (vf){} + 2 * NEVER));
            }
        }
    }
}

/* Softmax of one query's scores, added to its row. */
static void add_weights(const float *scores, float *mean, int keys, float share) {
    vf most = (vf){} + NEVER;
    for (int k = 0; k < keys; k += WIDTH) most = larger(most, load_f32(scores + k));
    const float top = largest(most);
    vf sums = {};
    for (int k = 0; k < keys; k += WIDTH) {
        vf s = load_f32(scores + k);
        sums += pick(s > 1.5f * NEVER, exp2_of(s - top), (vf){});
    }
    const float total = sum(sums), scale = total == 0.0f ? 0.0f : share / total;
    for (int k = 0; k < keys; k += WIDTH) {
        vf s = load_f32(scores + k);
        vf weight = pick(s > 1.5f * NEVER, exp2_of(s - top), (vf){});
        store_f32(mean + k, load_f32(mean + k) + weight * scale);
    }
}

static void spread(const Block *b, int keys) {
    const Attend *of = &b->call->of;
    for (int r = 0; r < b->rows; r++) {
        const int row = b->first_row + r, position = of->row_positions[row];
        float *out = b->call->out + (int64_t)row * b->call->context;
        const float *mean = b->mean + (int64_t)r * keys;
        int at = 0;
        for (int run = 0; run < b->call->num_runs; run++) {
            const int32_t *look = of->looks + 4 * (int64_t)b->call->run_looks[2 * run];
            const int count = of->runs[3 * run + 2] * PAGE;
            for (int t = 0; t < count; t++) {
                const int where = of->key_positions[look[2] + t];
                if (where <= position) out[where] = mean[at + t];
            }
            at += count;
        }
    }
}

void weights_of_rows(Team *team, int member, const Weights *call, const LayerIO *io,
                     char *scratch) {
    const Attend *of = &call->of;
    const int keys = num_keys(of, call->num_runs), most = block_rows(of);
    const int group = of->heads / of->kv_heads;
    Scratch s = scratch_in(of, scratch);
    float *memory = (float *)(scratch + attend_scratch_bytes(of));
    for (int i; (i = team_take(team, member) * most) < of->num_rows;) {
        Block b = {memory, memory + (int64_t)most * group * keys, call, i, most};
        if (b.rows > of->num_rows - i) b.rows = of->num_rows - i;
        memset(b.mean, 0, sizeof(float) * (size_t)b.rows * keys);
        for (int head = 0; head < of->kv_heads; head++) {
            for (int run = 0, at = 0; run < call->num_runs; at += of->runs[3 * run++ + 2] * PAGE)
                score_run(&b, io, run, head, at, keys, &s);
            for (int q = 0; q < b.rows * group; q++)
                add_weights(b.scores + (int64_t)q * keys, b.mean + (int64_t)(q / group) * keys,
                            keys, 1.0f / (float)of->heads);
        }
        spread(&b, keys);
    }
}
