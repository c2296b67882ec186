/*
 * CRC-32 of zip and gzip, which archives, journal, manifest and ledger carry.
 */
#ifndef MGR_CORE_CRC_H
#define MGR_CORE_CRC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The CRC of what has `crc` (0: nothing) with `n` bytes behind it. Local, thread-safe. */
uint32_t mgr_crc32(uint32_t crc, const void *bytes, size_t n);

/* Does this CPU run the kernel that folds 32 bytes with a carry-less product, and the build have
 * it? Then mgr_crc32 uses it; if not, libdeflate's. Pure. */
bool mgr_crc32_folds(void);

/* --- between the files of it --- */

/* What a step folds; the kernel takes no less. */
#define MGR_CRC32_STEP 128

/* The same as mgr_crc32. Only where mgr_crc32_folds. Pure. */
uint32_t mgr_crc32_fold(uint32_t crc, const unsigned char *bytes, size_t n);
extern const bool mgr_crc32_fold_built;

#endif
