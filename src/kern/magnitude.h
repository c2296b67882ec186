/*
 * What the files of mgr_largest_magnitude share: one kernel per CPU path.
 */
#ifndef MGR_KERN_MAGNITUDE_H
#define MGR_KERN_MAGNITUDE_H

#include <stddef.h>
#include <stdint.h>

/* The largest magnitude of `n_blocks` blocks of values of 2 or of 4 bytes. `values` needs no
 * alignment. Pure. */
typedef uint32_t mgr_largest_blocks(const unsigned char *values, size_t n_blocks);

typedef struct mgr_largest_path {
    size_t block; /* bytes; 0: not in this build */
    mgr_largest_blocks *of_2, *of_4;
} mgr_largest_path;

extern const mgr_largest_path mgr_largest_path_avx2, mgr_largest_path_avx512;

#endif
