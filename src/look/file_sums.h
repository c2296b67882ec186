/*
 * CRC-32s of whole files, in parallel over the ranks.
 */
#ifndef MGR_LOOK_FILE_SUMS_H
#define MGR_LOOK_FILE_SUMS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/mem.h"
#include "mgr/err.h"
#include "par/comm.h"

/* A file below a folder: `path` is below it, too. */
typedef struct mgr_file_sum {
    const char *path;
    uint64_t bytes;
    uint32_t crc32;
    bool known; /* crc32 is set: nothing is read */
} mgr_file_sum;

/* The same list on all ranks. */
typedef struct mgr_file_sums {
    mgr_file_sum *list;
    size_t n, capacity;
    mgr_arena arena; /* of the paths */
} mgr_file_sums;

int mgr_file_sums_add(mgr_file_sums *sums, const char *path, uint64_t bytes,
                      mgr_err *err) MGR_NODISCARD;
void mgr_file_sums_clear(mgr_file_sums *sums);

/* Rank 0's list to the others, whose own is empty. Collective. */
int mgr_file_sums_share(mgr_comm *comm, mgr_file_sums *sums, mgr_err *err) MGR_NODISCARD;

/* Is shown every piece of a file that this rank reads. Local. */
typedef struct mgr_sum_visitor {
    int (*see)(void *context, uint32_t file, uint64_t offset, const void *bytes, size_t len,
               mgr_err *err);
    void *context;
} mgr_sum_visitor;

/* Read the files that are not known, each byte once, every rank the same share of the bytes, and
 * set their crc32 on rank 0. `visitor` may be NULL. Errors: MGR_ERR_IO, and MGR_ERR_FORMAT for a
 * file that ends early. Collective. */
int mgr_file_sums_take(mgr_comm *comm, const char *directory, mgr_file_sums *sums,
                       const mgr_sum_visitor *visitor, mgr_err *err) MGR_NODISCARD;

#endif
