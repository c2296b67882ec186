/*
 * Normals for NEON, which every aarch64 CPU has.
 */
#if defined(__aarch64__)
#include "rng/simd_neon.h"

#include "rng/normal_body.h"

const mgr_normal_path mgr_normal_path_neon = BODY_PATH;
#else
#include "rng/normal.h"

const mgr_normal_path mgr_normal_path_neon = {0, NULL, NULL, NULL, NULL, NULL, NULL};
#endif
