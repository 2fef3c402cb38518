// What the library shares with the kernels, which are compiled once for every set of instructions: the work of each, cut
// into units that any thread may take. A unit writes what no other writes.
#pragma once
#include <stdint.h>

#define PAGE_TOKENS 16
#define MOST_QUERIES 6  // that share what is read of keys and values
#define MOST_ROWS 4     // that share what is read of an adapter
#define LARGEST_RANK 1024

typedef void (*unit_fn)(const void *work, int64_t unit, int member);

// T rows of S sequences, N blocks of them. The same for all layers of a step.
struct batch {
    const int64_t *indptr;  // [S + 1], the rows of each sequence
    const int64_t *starts;  // [S], its tokens before the first of them
    const int32_t *table;   // [S, table_width], its pages
    int64_t table_width;
    const int64_t *places;  // [T], where in the pages each row's token lies: page * PAGE_TOKENS + token
    const int32_t *blocks;  // [N, 3]: sequence, first row, number of rows
    int64_t num_blocks;
    int64_t has_chunks;    // whether some sequence has more than one row
    int64_t scores_width;  // tokens of the longest sequence, in whole pages
};

// Strides count numbers. Unit: one block, one head of keys and values.
struct attention {
    const struct batch *batch;
    float *out;                // [T, query_heads, size], contiguous
    const float *q, *k, *v;    // [T, query_heads or heads, size], features together
    float *k_pages, *v_pages;  // [P, heads, size, PAGE_TOKENS], [P, heads, PAGE_TOKENS, size]
    int64_t q_row, q_head, k_row, k_head, v_row, v_head;
    int64_t query_heads, heads, size;
    float scale;
    int64_t window;  // tokens seen, the row's own included; 0 is all
    float *scores;   // [threads, MOST_QUERIES, scores_width]
};

// Unit: a block of at most MOST_ROWS rows of one slot. Rows of slots without weights become the residual's.
struct adaptation {
    float *out;                       // [T, features]
    const float *residual, *source;   // [T, features], [T, source_features]; may be `out`
    int64_t out_row, residual_row, source_row;
    int64_t features, source_features;
    const int32_t *slot, *first, *end;  // [N], of each block
    const int64_t *table;               // [slots, RECORD_FIELDS]
    const float *base;
};

enum { DOWN, DOWN_BIAS, UP, UP_BIAS, RANK, ACTIVATION, SCALE, RECORD_FIELDS = 8 };
enum { IDENTITY, GELU, GELU_TANH, RELU, SILU, TANH };

// Unit: a row.
struct norm {
    float *out;
    const float *x, *weight;
    int64_t out_row, x_row, features;
    float eps;
};

struct gate {
    float *out;
    const float *gate, *up;
    int64_t out_row, gate_row, up_row, features;
};

struct kernels {
    unit_fn write, attend, adapt, rms_norm, silu_mul;
};
