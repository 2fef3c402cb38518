// All kernels for one set of instructions: compiled once for each, with the compiler's flags for it and KERNELS as the
// table's name.
#include "paged.h"
#include "rows.h"
#include "rowwise.h"

__attribute__((visibility("hidden"))) extern const struct kernels KERNELS;
const struct kernels KERNELS = {write, attend, adapt, rms_norm, silu_mul};
