/*
 * Weights that are no numbers, found as the bytes of an output pass by.
 */
#ifndef MGR_LOOK_SCAN_H
#define MGR_LOOK_SCAN_H

#include "core/str.h"
#include "look/file_sums.h"
#include "mgr/catalogue.h"

/* A weight that is no number: the tensor's index in the catalogue, and where in its file it is. */
typedef struct mgr_odd {
    uint64_t stored, offset;
} mgr_odd;

struct mgr_span; /* where a tensor lies */

/* Zeroed is empty. */
typedef struct mgr_scan {
    const mgr_catalogue *cat;
    struct mgr_span *spans; /* of one file behind those of another, by their places */
    size_t n_spans, capacity;
    mgr_buf odd; /* mgr_odd, one for each piece that has any */
} mgr_scan;

/* Do a tensor's elements lie one behind the other, so that they can be looked at in place? Pure. */
bool mgr_scan_is_plain(const mgr_stored *stored);

/* Be ready for pieces of the files of `sums`, which lie below `directory` and are named there as
 * the catalogue's are. Both lists outlive the scan. Local. */
int mgr_scan_begin(mgr_scan *scan, const mgr_catalogue *cat, const char *directory,
                   const mgr_file_sums *sums, mgr_err *err) MGR_NODISCARD;

/* An mgr_sum_visitor whose context is the scan: costs no more than what lies in the piece. */
int mgr_scan_piece(void *scan, uint32_t file, uint64_t offset, const void *bytes, size_t len,
                   mgr_err *err) MGR_NODISCARD;

/* Every `step`-th tensor from `first` on, by rows: those that a library keeps. Local. */
int mgr_scan_kept(mgr_scan *scan, size_t first, size_t step, mgr_err *err) MGR_NODISCARD;

void mgr_scan_clear(mgr_scan *scan);

#endif
