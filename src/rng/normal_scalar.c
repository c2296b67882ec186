/*
 * Normals in plain C, for any CPU.
 */
#include "rng/simd_scalar.h"

#include "rng/normal_body.h"

const mgr_normal_path mgr_normal_path_scalar = BODY_PATH;
