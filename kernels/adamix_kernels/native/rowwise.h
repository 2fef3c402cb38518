// What stands between the products of a decoder's layer, row by row.
#pragma once
#include <math.h>

#include "kernels.h"
#include "vectors.h"

// out = weight * x / sqrt(mean(x^2) + eps)
static void rms_norm(const void *work, int64_t unit, int member) {
    const struct norm *n = work;
    const float *x = n->x + unit * n->x_row;
    float *out = n->out + unit * n->out_row;
    const int64_t whole = n->features / LANES * LANES, rest = n->features - whole;
    floats total = all(0.0f);
    (void)member;
    for (int64_t at = 0; at < whole; at += LANES) total += load(x + at) * load(x + at);
    if (rest) total += load_some(x + whole, rest) * load_some(x + whole, rest);
    const float factor = 1.0f / sqrtf(sum(total) / (float)n->features + n->eps);
    for (int64_t at = 0; at < whole; at += LANES) store(out + at, load(n->weight + at) * (load(x + at) * factor));
    if (rest) {
        floats last = load_some(n->weight + whole, rest) * (load_some(x + whole, rest) * factor);
        store_some(out + whole, last, rest);
    }
}

INLINE floats silu(floats x) {
    // Of e^x and e^-x the one that is at most 1.
    ints negative = x < 0.0f;
    floats small = exponential(choose(negative, x, -x));
    return x * choose(negative, small, all(1.0f)) / (1.0f + small);
}

// out = silu(gate) * up
static void silu_mul(const void *work, int64_t unit, int member) {
    const struct gate *g = work;
    const float *gate = g->gate + unit * g->gate_row, *up = g->up + unit * g->up_row;
    float *out = g->out + unit * g->out_row;
    const int64_t whole = g->features / LANES * LANES, rest = g->features - whole;
    (void)member;
    for (int64_t at = 0; at < whole; at += LANES) store(out + at, silu(load(gate + at)) * load(up + at));
    if (rest) store_some(out + whole, silu(load_some(gate + whole, rest)) * load_some(up + whole, rest), rest);
}
