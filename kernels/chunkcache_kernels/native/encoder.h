/* A BERT-type encoder over packed rows: texts of any length one after the other, no padding.
 *
 * One call is one thread's work on some texts; several threads may call at once. A row's numbers do
 * not depend on what else is in the call.
 *
 * Products are of 16-bit integers summed in 32 bits, in blocks of at most 512 terms. Every row and
 * every column of a block has a step, chosen so that its Euclidean norm is at most NORM steps: by
 * Cauchy and Schwarz no sum can then overflow. That is some 2^-13 of a typical number, where bf16
 * has 2^-9, at twice the speed of fp32. */
#ifndef CHUNKCACHE_ENCODER_H
#define CHUNKCACHE_ENCODER_H

#include <stdint.h>

#define NORM 46000.0f  /* (NORM + sqrt(512) / 2 for rounding)^2 < 2^31 */
#define LARGEST 32767.0f
#define COLUMNS 32     /* of a panel */

typedef struct {
    const int16_t *numbers; /* [blocks][out / COLUMNS][in / blocks / 2][COLUMNS][2] */
    const float *steps;     /* [blocks][out] */
    const float *bias;      /* [out] */
    int32_t in, out, blocks, unused;
} Linear;

typedef struct {
    Linear qkv, mixed, up, down;
    const float *mixed_norm, *mixed_shift, *down_norm, *down_shift; /* LayerNorm behind each */
} EncoderLayer;

typedef struct {
    const EncoderLayer *layers;
    const float *words;     /* [vocabulary][width] */
    const float *positions; /* [positions][width], the first text's type added */
    const float *norm, *shift;
    int32_t num_layers, width, inner, heads;
    float eps;
    int32_t unused;
} Encoder;

#endif
