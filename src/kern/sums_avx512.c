/*
 * The per-neuron sums for AVX-512; src/CMakeLists.txt gives this file alone the instruction set.
 */
#if defined(__AVX512F__)
#include "kern/sums_body.h"

const mgr_sums_path mgr_sums_path_avx512 = {row, strip};
#else
#include "kern/sums.h"

const mgr_sums_path mgr_sums_path_avx512 = {NULL, NULL};
#endif
