/*
 * Normals for AVX-512; src/CMakeLists.txt gives this file alone the instruction set.
 */
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__)
#include "rng/simd_avx512.h"

#include "rng/normal_body.h"

const mgr_normal_path mgr_normal_path_avx512 = BODY_PATH;
#else
#include "rng/normal.h"

const mgr_normal_path mgr_normal_path_avx512 = {0, NULL, NULL, NULL, NULL, NULL, NULL};
#endif
