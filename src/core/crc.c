#include "core/crc.h"

#include <libdeflate.h>

/* Below this the kernel's end, which is libdeflate's, weighs more than what it saves. */
#define FOLD_MIN ((size_t)1 << 10)

bool mgr_crc32_folds(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return mgr_crc32_fold_built && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("vpclmulqdq");
#else
    return false;
#endif
}

uint32_t mgr_crc32(uint32_t crc, const void *bytes, size_t n)
{
    if (n >= FOLD_MIN && mgr_crc32_folds())
        return mgr_crc32_fold(crc, bytes, n);
    return libdeflate_crc32(crc, bytes, n);
}
