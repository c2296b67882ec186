/*
 * Square roots, rounded correctly, without the C library: IEEE 754 defines every bit of a square
 * root, and both CPU families have the instruction. (A plain sqrt() would bring in libm for errno.)
 */
#ifndef MGR_RNG_ROOT_H
#define MGR_RNG_ROOT_H

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* The square root of x >= 0. Local. */
static inline float mgr_root_f32(float x)
{
#if defined(__SSE2__)
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#elif defined(__aarch64__)
    return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0);
#else
    return __builtin_sqrtf(x);
#endif
}

static inline double mgr_root_f64(double x)
{
#if defined(__SSE2__)
    const __m128d v = _mm_set_sd(x);
    return _mm_cvtsd_f64(_mm_sqrt_sd(v, v));
#elif defined(__aarch64__)
    return vget_lane_f64(vsqrt_f64(vdup_n_f64(x)), 0);
#else
    return __builtin_sqrt(x);
#endif
}

#endif
