// As many fp32 numbers at a time as a register holds, in the vector extensions that GCC and clang share. Wider ones would
// be kept in memory. A sum over lanes has one order, so that results do not depend on what stands beside them.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float unaligned_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE floats all(float x) { return x - (floats){0}; }

INLINE floats load(const float *from) { return *(const unaligned_floats *)from; }

INLINE void store(float *to, floats x) { *(unaligned_floats *)to = x; }

// The first `count` < LANES numbers and zeros: nothing behind them is read.
INLINE floats load_some(const float *from, int64_t count) {
    float x[LANES] = {0};
    for (int64_t i = 0; i < count; i++) x[i] = from[i];
    return load(x);
}

INLINE void store_some(float *to, floats x, int64_t count) {
    float each[LANES];
    store(each, x);
    for (int64_t i = 0; i < count; i++) to[i] = each[i];
}

// Where a mask is all ones `a`, elsewhere `b`; a choice of bits, so that what is not chosen may be anything.
INLINE floats choose(ints mask, floats a, floats b) { return (floats)((mask & (ints)a) | (~mask & (ints)b)); }

INLINE float sum(floats x) {
    float part[LANES];
    store(part, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

INLINE float largest(floats x) {
    float part[LANES];
    store(part, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] = part[i + half] > part[i] ? part[i + half] : part[i];
    return part[0];
}

// e^x for x <= 0, to about one unit in the last place; 0 below -87, NaN of NaN.
INLINE floats exponential(floats x) {
    const float log2_e = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
    const float to_integer = 12582912.0f;  // 1.5 * 2^23: fp32 numbers of this size are whole
    ints vanishes = x < -87.0f;
    x = choose(vanishes, all(-87.0f), x);
    floats n = (x * log2_e + to_integer) - to_integer;
    floats r = (x - n * ln2_high) - n * ln2_low;
    floats y = r * (1.0f / 5040) + (1.0f / 720);
    y = y * r + (1.0f / 120);
    y = y * r + (1.0f / 24);
    y = y * r + (1.0f / 6);
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    ints exponent = __builtin_convertvector(n, ints) + 127;
    return choose(vanishes, all(0.0f), y * (floats)(exponent << 23));
}
