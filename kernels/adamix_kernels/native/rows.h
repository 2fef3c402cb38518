// Low-rank adapters on rows: `out = residual + scale * (act(source down^T + down_bias) up + up_bias)`. Up to four rows of
// one adapter share what is read of it; each row's sums have the same order in a block of any height.
#pragma once
#include <math.h>

#include "kernels.h"
#include "vectors.h"

// Hidden units that share what is read of the rows: as many as leave the sums of MOST_ROWS rows in registers.
#define RANKS (LANES == 16 ? 4 : 2)

struct adapter {
    const float *down, *down_bias, *up, *up_bias;
    int64_t rank, activation;
    float scale;
};

static struct adapter adapter_at(const int64_t *record, const float *base) {
    struct adapter found = {
        .down = base + record[DOWN],
        .down_bias = record[DOWN_BIAS] < 0 ? 0 : base + record[DOWN_BIAS],
        .up = base + record[UP],
        .up_bias = record[UP_BIAS] < 0 ? 0 : base + record[UP_BIAS],
        .rank = record[RANK],
        .activation = record[ACTIVATION],
    };
    int32_t bits = (int32_t)record[SCALE];
    memcpy(&found.scale, &bits, sizeof bits);
    return found;
}

static float activated(float x, int64_t activation) {
    switch (activation) {
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        case RELU: return x < 0.0f ? 0.0f : x;
        case SILU: return x / (1.0f + expf(-x));
        case TANH: return tanhf(x);
        default: return x;
    }
}

// `rows` and `ranks` are constants wherever this is used. Hidden units `rank` to `rank + ranks` of every row.
INLINE void units_of(
    float hidden[MOST_ROWS][LARGEST_RANK], int rows, int ranks, int64_t rank, const struct adaptation *a,
    const struct adapter *adapter, int64_t first
) {
    const float *source = a->source + first * a->source_row, *down = adapter->down + rank * a->source_features;
    const int64_t features = a->source_features;
    floats total[MOST_ROWS][RANKS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < ranks; j++) total[i][j] = all(0.0f);
    int64_t at = 0;
    for (; at + LANES <= features; at += LANES) {
        floats weight[RANKS];
        for (int j = 0; j < ranks; j++) weight[j] = load(down + j * features + at);
        for (int i = 0; i < rows; i++) {
            floats x = load(source + i * a->source_row + at);
            for (int j = 0; j < ranks; j++) total[i][j] += x * weight[j];
        }
    }
    if (at < features)
        for (int i = 0; i < rows; i++) {
            floats x = load_some(source + i * a->source_row + at, features - at);
            for (int j = 0; j < ranks; j++) total[i][j] += x * load_some(down + j * features + at, features - at);
        }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < ranks; j++) {
            float unit = sum(total[i][j]) + (adapter->down_bias ? adapter->down_bias[rank + j] : 0.0f);
            hidden[i][rank + j] = activated(unit, adapter->activation);
        }
}

// `vectors` times LANES columns, or (0) the `rest` of less than LANES, beginning with `column`.
INLINE void columns_of(
    const float hidden[MOST_ROWS][LARGEST_RANK], int rows, int vectors, int64_t rest, int64_t column,
    const struct adaptation *a, const struct adapter *adapter, int64_t first
) {
    const int parts = vectors ? vectors : 1;
    floats total[MOST_ROWS][4], weight[4];
    for (int part = 0; part < parts; part++) {
        const float *bias = adapter->up_bias + column + part * LANES;
        floats begin = !adapter->up_bias ? all(0.0f) : vectors ? load(bias) : load_some(bias, rest);
        for (int i = 0; i < rows; i++) total[i][part] = begin;
    }
    for (int64_t rank = 0; rank < adapter->rank; rank++) {
        const float *up = adapter->up + rank * a->features + column;
        for (int part = 0; part < parts; part++)
            weight[part] = vectors ? load(up + part * LANES) : load_some(up, rest);
        for (int i = 0; i < rows; i++)
            for (int part = 0; part < parts; part++) total[i][part] += weight[part] * hidden[i][rank];
    }
    for (int i = 0; i < rows; i++)
        for (int part = 0; part < parts; part++) {
            const float *residual = a->residual + (first + i) * a->residual_row + column + part * LANES;
            float *out = a->out + (first + i) * a->out_row + column + part * LANES;
            if (vectors) store(out, load(residual) + total[i][part] * adapter->scale);
            else store_some(out, load_some(residual, rest) + total[i][part] * adapter->scale, rest);
        }
}

INLINE void adapt_rows(int rows, const struct adaptation *a, const struct adapter *adapter, int64_t first) {
    float hidden[MOST_ROWS][LARGEST_RANK];
    int64_t rank = 0, column = 0;
    for (; rank + RANKS <= adapter->rank; rank += RANKS) units_of(hidden, rows, RANKS, rank, a, adapter, first);
    for (; rank < adapter->rank; rank++) units_of(hidden, rows, 1, rank, a, adapter, first);
    for (; column + 4 * LANES <= a->features; column += 4 * LANES)
        columns_of(hidden, rows, 4, 0, column, a, adapter, first);
    for (; column + LANES <= a->features; column += LANES) columns_of(hidden, rows, 1, 0, column, a, adapter, first);
    if (column < a->features) columns_of(hidden, rows, 0, a->features - column, column, a, adapter, first);
}

static void adapt(const void *work, int64_t unit, int member) {
    const struct adaptation *a = work;
    const int64_t first = a->first[unit], rows = a->end[unit] - first;
    const int64_t *record = a->table + RECORD_FIELDS * a->slot[unit];
    (void)member;
    if (!record[RANK]) {
        for (int64_t row = first; a->out != a->residual && row < first + rows; row++) {
            const float *from = a->residual + row * a->residual_row;
            memcpy(a->out + row * a->out_row, from, sizeof(float) * (size_t)a->features);
        }
        return;
    }
    const struct adapter adapter = adapter_at(record, a->base);
    switch (rows) {
        case 1: adapt_rows(1, a, &adapter, first); break;
        case 2: adapt_rows(2, a, &adapter, first); break;
        case 3: adapt_rows(3, a, &adapter, first); break;
        default: adapt_rows(MOST_ROWS, a, &adapter, first);
    }
}
