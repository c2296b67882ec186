/*
 * Which CPU path runs. All give the same bits, so the choice is about speed, and about tests.
 */
#include <stdatomic.h>

#include "rng/normal.h"

static const struct {
    const char *name;
    const mgr_normal_path *path;
} paths[MGR_SIMD_COUNT] = {
    [MGR_SIMD_SCALAR] = {"scalar", &mgr_normal_path_scalar},
    [MGR_SIMD_AVX2] = {"avx2", &mgr_normal_path_avx2},
    [MGR_SIMD_AVX512] = {"avx512", &mgr_normal_path_avx512},
    [MGR_SIMD_NEON] = {"neon", &mgr_normal_path_neon},
};

/* MGR_SIMD_COUNT: not decided yet. Atomic, because the first use may come from two threads. */
static _Atomic int current = MGR_SIMD_COUNT;

static int cpu_runs(mgr_simd simd)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (simd == MGR_SIMD_AVX2)
        return __builtin_cpu_supports("avx2");
    if (simd == MGR_SIMD_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    (void)simd;
#endif
    return 1; /* a path of another architecture is not in this build */
}

const char *mgr_simd_name(mgr_simd simd)
{
    return (unsigned)simd < MGR_SIMD_COUNT ? paths[simd].name : "unknown";
}

int mgr_simd_available(mgr_simd simd)
{
    return (unsigned)simd < MGR_SIMD_COUNT && paths[simd].path->group > 0 && cpu_runs(simd);
}

mgr_simd mgr_simd_current(void)
{
    int simd = atomic_load_explicit(&current, memory_order_relaxed);
    if (simd != MGR_SIMD_COUNT)
        return (mgr_simd)simd;

    simd = MGR_SIMD_SCALAR;
    for (int i = 0; i < MGR_SIMD_COUNT; i++) {
        if (mgr_simd_available((mgr_simd)i) && paths[i].path->group > paths[simd].path->group)
            simd = i;
    }
    atomic_store_explicit(&current, simd, memory_order_relaxed);
    return (mgr_simd)simd;
}

int mgr_simd_select(mgr_simd simd, mgr_err *err)
{
    if (!mgr_simd_available(simd))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "the CPU path '%s' is not available here",
                        mgr_simd_name(simd));
    atomic_store_explicit(&current, (int)simd, memory_order_relaxed);
    return MGR_OK;
}

const mgr_normal_path *mgr_normal_path_current(void)
{
    return paths[mgr_simd_current()].path;
}
