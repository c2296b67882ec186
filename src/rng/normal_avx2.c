/*
 * Normals for AVX2; src/CMakeLists.txt gives this file alone the instruction set.
 */
#if defined(__AVX2__)
#include "rng/simd_avx2.h"

#include "rng/normal_body.h"

const mgr_normal_path mgr_normal_path_avx2 = BODY_PATH;
#else
#include "rng/normal.h"

const mgr_normal_path mgr_normal_path_avx2 = {0, NULL, NULL, NULL, NULL, NULL, NULL};
#endif
