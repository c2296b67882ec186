/*
 * An output held against its own manifest: mgr-verify.
 */
#ifndef MGR_LOOK_AUDIT_H
#define MGR_LOOK_AUDIT_H

#include <stdbool.h>

#include "look/manifest_read.h"
#include "mgr/err.h"
#include "par/comm.h"

typedef struct mgr_audit_options {
    const char *path; /* an output's folder */
    bool json, quiet;
} mgr_audit_options;

/* Read every file of the output once, over all ranks, and compare: the manifest with its digest;
 * each file's size and CRC-32; keys and sizes of the tensors; the model that they show; are all
 * weights finite; do experts differ from each other (but for naive copies), and are the ledger's
 * checksums and sets those of the output. Rank 0 prints the first difference with tensor, file and
 * byte, and how many there are. *good tells whether there is none, on all ranks. Errors: of
 * reading, and MGR_ERR_NOT_FOUND, MGR_ERR_UNSUPPORTED where there is no manifest that lists
 * checksums. Collective. */
int mgr_audit(mgr_comm *comm, const mgr_audit_options *options, bool *good,
              mgr_err *err) MGR_NODISCARD;

#endif
