#include "core/crc.h"

#include <libdeflate.h>

/* Below this a kernel's end, which is libdeflate's, weighs more than what it saves. */
#define FOLD_MIN ((size_t)1 << 10)

mgr_crc32_kernel *mgr_crc32_runs_256(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq"))
        return mgr_crc32_fold_256;
#endif
    return NULL;
}

mgr_crc32_kernel *mgr_crc32_runs_512(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"))
        return mgr_crc32_fold_512;
#endif
    return NULL;
}

uint32_t mgr_crc32(uint32_t crc, const void *bytes, size_t n)
{
    mgr_crc32_kernel *kernel = NULL;

    if (n >= FOLD_MIN)
        kernel = mgr_crc32_runs_512() ? mgr_crc32_runs_512() : mgr_crc32_runs_256();
    return kernel ? kernel(crc, bytes, n) : libdeflate_crc32(crc, bytes, n);
}
