/*
 * CRC-32 of zip and gzip, which archives, journal, manifest and ledger carry.
 */
#ifndef MGR_CORE_CRC_H
#define MGR_CORE_CRC_H

#include <stddef.h>
#include <stdint.h>

/* The CRC of what has `crc` (0: nothing) with `n` bytes behind it. Local, thread-safe. */
uint32_t mgr_crc32(uint32_t crc, const void *bytes, size_t n);

/* --- between the files of it --- */

/* The same as mgr_crc32, of no less than a step. Pure. */
typedef uint32_t mgr_crc32_kernel(uint32_t crc, const unsigned char *bytes, size_t n);

/* What folds 32 or 64 bytes with a carry-less product, and what a step of it takes. NULL: not in
 * this build. */
#define MGR_CRC32_STEP 128
extern mgr_crc32_kernel *const mgr_crc32_fold_256;
#define MGR_CRC32_STEP_512 512
extern mgr_crc32_kernel *const mgr_crc32_fold_512;

/* The former or the latter if this CPU runs it and the build has it, or else NULL. mgr_crc32 uses
 * the latter, the former or libdeflate's. Pure. */
mgr_crc32_kernel *mgr_crc32_runs_256(void);
mgr_crc32_kernel *mgr_crc32_runs_512(void);

#endif
