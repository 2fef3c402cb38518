// What Python calls. Chooses the kernels of this processor, and shares their units out over the threads of the OpenMP
// runtime that torch has loaded already: its address comes from Python, nothing is linked, so there is one pool of threads.
#include <stddef.h>
#include <string.h>

#include "kernels.h"

#define EXPORT __attribute__((visibility("default")))

extern const struct kernels kernels_plain;
#ifdef WITH_AVX2
extern const struct kernels kernels_avx2;
#endif
#ifdef WITH_AVX512
extern const struct kernels kernels_avx512;
#endif

static const struct kernels *kernels = &kernels_plain;

// Of an OpenMP runtime: runs `part(data)` once in each of so many threads, the calling one among them.
typedef void (*parallel_fn)(void (*part)(void *), void *data, unsigned threads, unsigned flags);
static parallel_fn parallel;

// Use these threads; NULL is the calling one alone.
EXPORT void adamix_use_threads(void *openmp_parallel) { *(void **)&parallel = openmp_parallel; }

// Use the kernels called "plain", "avx2" or "avx512". 0: they were not built, or this processor cannot run them.
EXPORT int adamix_use_kernels(const char *name) {
    const struct kernels *found = !strcmp(name, "plain") ? &kernels_plain : NULL;
#ifdef WITH_AVX2
    if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = &kernels_avx2;
#endif
#ifdef WITH_AVX512
    if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma"))
        found = &kernels_avx512;
#endif
    if (found) kernels = found;
    return found != NULL;
}

struct team {
    unit_fn run;
    const void *work;
    int64_t units, next, at_once;
    int members;
};

static void take_part(void *data) {
    struct team *team = data;
    const int member = __atomic_fetch_add(&team->members, 1, __ATOMIC_RELAXED);
    for (;;) {
        const int64_t first = __atomic_fetch_add(&team->next, team->at_once, __ATOMIC_RELAXED);
        if (first >= team->units) return;
        const int64_t last = team->units - first < team->at_once ? team->units : first + team->at_once;
        for (int64_t unit = first; unit < last; unit++) team->run(team->work, unit, member);
    }
}

static void run(unit_fn unit, const void *work, int64_t units, int threads) {
    struct team team = {unit, work, units, 0, 1, 0};
    // All of the threads or none: from a smaller team libgomp ends the others, and makes them anew for the next.
    if (threads < 2 || units < 2 || !parallel) {
        team.at_once = units;
        take_part(&team);
        return;
    }
    // Small enough that no thread waits long for the last, large enough that they rarely meet.
    team.at_once = units / (8 * threads) ? units / (8 * threads) : 1;
    parallel(take_part, &team, (unsigned)threads, 0);
}

EXPORT void adamix_paged_attention(const struct attention *work, int threads) {
    if (work->batch->has_chunks) run(kernels->write, work, work->batch->num_blocks, threads);
    run(kernels->attend, work, work->batch->num_blocks * work->heads, threads);
}

// Numbers multiplied below which waking a thread costs more than it saves.
#define THREADS_PAY 500000

// 0: done. 1: an adapter's rank is larger than LARGEST_RANK; nothing was done.
EXPORT int adamix_adapt(const struct adaptation *work, int64_t blocks, int threads) {
    int64_t products = 0;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t rank = work->table[RECORD_FIELDS * work->slot[i] + RANK];
        if (rank > LARGEST_RANK) return 1;
        products += rank * (work->end[i] - work->first[i]) * (work->features + work->source_features);
    }
    run(kernels->adapt, work, blocks, products < THREADS_PAY ? 1 : threads);
    return 0;
}

EXPORT void adamix_rms_norm(const struct norm *work, int64_t rows, int threads) {
    run(kernels->rms_norm, work, rows, rows * work->features < THREADS_PAY / 4 ? 1 : threads);
}

EXPORT void adamix_silu_mul(const struct gate *work, int64_t rows, int threads) {
    run(kernels->silu_mul, work, rows, rows * work->features < THREADS_PAY / 8 ? 1 : threads);
}
