// Attention of new tokens to the pages of their sequence. A page of keys is `[size, 16]`, so that a product of a query
// with its sixteen tokens needs no sum over lanes. Every query's sums run over its tokens in their order, whatever shares
// a block with it.
#pragma once
#include <math.h>

#include "kernels.h"
#include "vectors.h"

#define PARTS (PAGE_TOKENS / LANES)

INLINE ints count_from(int32_t first) {
    ints count;
    for (int i = 0; i < LANES; i++) count[i] = first + i;
    return count;
}

// The queries of one block that share a head of keys and values: each sees the tokens `begin` to `end`.
struct queries {
    const float *q[MOST_QUERIES];
    float *out[MOST_QUERIES];
    int64_t begin[MOST_QUERIES], end[MOST_QUERIES];
    float *scores[MOST_QUERIES];  // from page `first_page` on
    float maximum[MOST_QUERIES], factor[MOST_QUERIES];
    int64_t first_page, end_page, first_token, end_token;
};

static void write_token(const struct attention *a, int64_t row, int64_t head) {
    int64_t page = a->batch->places[row] / PAGE_TOKENS, token = a->batch->places[row] % PAGE_TOKENS;
    const float *k = a->k + row * a->k_row + head * a->k_head, *v = a->v + row * a->v_row + head * a->v_head;
    float *keys = a->k_pages + (page * a->heads + head) * a->size * PAGE_TOKENS + token;
    float *values = a->v_pages + ((page * a->heads + head) * PAGE_TOKENS + token) * a->size;
    for (int64_t e = 0; e < a->size; e++) keys[e * PAGE_TOKENS] = k[e];
    memcpy(values, v, sizeof(float) * (size_t)a->size);
}

static int64_t rows_of(const struct attention *a, int64_t sequence) {
    return a->batch->indptr[sequence + 1] - a->batch->indptr[sequence];
}

// The token of a sequence with one new token is written by whoever attends: its page is read next.
static void write(const void *work, int64_t unit, int member) {
    const struct attention *a = work;
    const int32_t *block = a->batch->blocks + 3 * unit;
    (void)member;
    if (rows_of(a, block[0]) == 1) return;
    for (int64_t row = block[1]; row < block[1] + block[2]; row++)
        for (int64_t head = 0; head < a->heads; head++) write_token(a, row, head);
}

INLINE void scores_of(struct queries *s, int n, const struct attention *a, const int32_t *pages, int64_t head) {
    floats maximum[MOST_QUERIES];
    for (int i = 0; i < n; i++) maximum[i] = all(-INFINITY);
    for (int64_t page = s->first_page; page < s->end_page; page++) {
        const float *keys = a->k_pages + (pages[page] * a->heads + head) * a->size * PAGE_TOKENS;
        floats product[MOST_QUERIES][PARTS];
        for (int i = 0; i < n; i++)
            for (int part = 0; part < PARTS; part++) product[i][part] = all(0.0f);
        for (int64_t e = 0; e < a->size; e++) {
            floats key[PARTS];
            for (int part = 0; part < PARTS; part++) key[part] = load(keys + e * PAGE_TOKENS + part * LANES);
            for (int i = 0; i < n; i++)
                for (int part = 0; part < PARTS; part++) product[i][part] += key[part] * s->q[i][e];
        }
        for (int i = 0; i < n; i++)
            for (int part = 0; part < PARTS; part++) {
                // All tokens are less than 2^31: `PagedBatch` sees to it.
                ints token = count_from((int32_t)(page * PAGE_TOKENS + part * LANES));
                ints unseen = (token < (int32_t)s->begin[i]) | (token >= (int32_t)s->end[i]);
                floats score = choose(unseen, all(-INFINITY), product[i][part] * a->scale);
                store(s->scores[i] + (page - s->first_page) * PAGE_TOKENS + part * LANES, score);
                maximum[i] = choose(score > maximum[i], score, maximum[i]);
            }
    }
    for (int i = 0; i < n; i++) s->maximum[i] = largest(maximum[i]);
}

// Scores become weights, not yet divided by their sum.
static void soften(struct queries *s, int n) {
    for (int i = 0; i < n; i++) {
        floats total = all(0.0f);
        for (int64_t at = 0; at < (s->end_page - s->first_page) * PAGE_TOKENS; at += LANES) {
            floats weight = exponential(load(s->scores[i] + at) - s->maximum[i]);
            store(s->scores[i] + at, weight);
            total += weight;
        }
        s->factor[i] = 1.0f / sum(total);
    }
}

// `vectors` times LANES columns, or (0) the `rest` of less than LANES, beginning with `column`.
INLINE void values_of(
    struct queries *s, int n, int vectors, int64_t rest, int64_t column, const struct attention *a,
    const int32_t *pages, int64_t head
) {
    const int parts = vectors ? vectors : 1;
    floats total[MOST_QUERIES][2];
    for (int i = 0; i < n; i++)
        for (int part = 0; part < parts; part++) total[i][part] = all(0.0f);
    for (int64_t page = s->first_page; page < s->end_page; page++) {
        const float *values = a->v_pages + (pages[page] * a->heads + head) * PAGE_TOKENS * a->size + column;
        int64_t before = page * PAGE_TOKENS;
        int64_t token = s->first_token > before ? s->first_token - before : 0;
        int64_t end = s->end_token - before < PAGE_TOKENS ? s->end_token - before : PAGE_TOKENS;
        for (; token < end; token++) {
            floats value[2];
            for (int part = 0; part < parts; part++) {
                const float *from = values + token * a->size + part * LANES;
                value[part] = vectors ? load(from) : load_some(from, rest);
            }
            for (int i = 0; i < n; i++) {
                float weight = s->scores[i][before - s->first_page * PAGE_TOKENS + token];
                for (int part = 0; part < parts; part++) total[i][part] += value[part] * weight;
            }
        }
    }
    for (int i = 0; i < n; i++)
        for (int part = 0; part < parts; part++) {
            float *to = s->out[i] + column + part * LANES;
            if (vectors) store(to, total[i][part] * s->factor[i]);
            else store_some(to, total[i][part] * s->factor[i], rest);
        }
}

// `n` is a constant wherever this is used, so that the sums of all queries stay in registers.
INLINE void answer(struct queries *s, int n, const struct attention *a, const int32_t *pages, int64_t head) {
    scores_of(s, n, a, pages, head);
    soften(s, n);
    int64_t column = 0;
    for (; column + 2 * LANES <= a->size; column += 2 * LANES) values_of(s, n, 2, 0, column, a, pages, head);
    for (; column + LANES <= a->size; column += LANES) values_of(s, n, 1, 0, column, a, pages, head);
    if (column < a->size) values_of(s, n, 0, a->size - column, column, a, pages, head);
}

static void attend(const void *work, int64_t unit, int member) {
    const struct attention *a = work;
    const int32_t *block = a->batch->blocks + 3 * (unit / a->heads);
    const int64_t head = unit % a->heads, sequence = block[0], first = block[1], end = first + block[2];
    const int32_t *pages = a->batch->table + sequence * a->batch->table_width;
    if (rows_of(a, sequence) == 1) write_token(a, first, head);
    // A block has one row, or few enough that all query heads of each fit.
    const int64_t group = a->query_heads / a->heads, passes = (group + MOST_QUERIES - 1) / MOST_QUERIES;
    const int64_t at_once = (group + passes - 1) / passes;
    for (int64_t from = 0; from < group; from += at_once) {
        struct queries s = {.first_token = INT64_MAX};
        int n = 0;
        for (int64_t row = first; row < end; row++)
            for (int64_t of_group = from; of_group < group && of_group < from + at_once; of_group++, n++) {
                const int64_t query_head = head * group + of_group;
                s.q[n] = a->q + row * a->q_row + query_head * a->q_head;
                s.out[n] = a->out + (row * a->query_heads + query_head) * a->size;
                s.scores[n] = a->scores + (member * MOST_QUERIES + n) * a->batch->scores_width;
                s.end[n] = a->batch->starts[sequence] + row - a->batch->indptr[sequence] + 1;
                s.begin[n] = a->window && s.end[n] > a->window ? s.end[n] - a->window : 0;
                if (s.begin[n] < s.first_token) s.first_token = s.begin[n];
                if (s.end[n] > s.end_token) s.end_token = s.end[n];
            }
        s.first_page = s.first_token / PAGE_TOKENS;
        s.end_page = (s.end_token + PAGE_TOKENS - 1) / PAGE_TOKENS;
        switch (n) {
            case 1: answer(&s, 1, a, pages, head); break;
            case 2: answer(&s, 2, a, pages, head); break;
            case 3: answer(&s, 3, a, pages, head); break;
            case 4: answer(&s, 4, a, pages, head); break;
            case 5: answer(&s, 5, a, pages, head); break;
            default: answer(&s, MOST_QUERIES, a, pages, head);
        }
    }
}
