/*
 * The per-neuron sums for AVX2; src/CMakeLists.txt gives this file alone the instruction set.
 */
#if defined(__AVX2__)
#include "kern/sums_body.h"

const mgr_sums_path mgr_sums_path_avx2 = {row, strip};
#else
#include "kern/sums.h"

const mgr_sums_path mgr_sums_path_avx2 = {NULL, NULL};
#endif
