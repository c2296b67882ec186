/*
 * The experts of an output against its ledger: part of mgr-verify.
 */
#ifndef MGR_LOOK_AUDIT_EXPERTS_H
#define MGR_LOOK_AUDIT_EXPERTS_H

#include <jansson.h>

#include "look/view.h"
#include "mgr/err.h"

typedef struct mgr_audit_report {
    json_t *findings; /* NULL while there are none */
    json_t *facts;    /* {"word": "text"}, for people */
} mgr_audit_report;

/* Note a difference; file and tensor may be NULL, `byte` UINT64_MAX. Local. */
int mgr_audit_find(mgr_audit_report *report, const char *file, const char *tensor, uint64_t byte,
                   const char *what, mgr_err *err) MGR_NODISCARD;

/* Where the manifest says that experts were made: are an expert's checksums in the ledger those of
 * the output; do no two experts of a layer have the same matrices, unless they were to be copies;
 * are as many neurons in each set, and kept, as the configuration asks for? Rank 0 only. */
int mgr_audit_experts(mgr_audit_report *report, const char *directory, const mgr_view *view,
                      const json_t *manifest, mgr_err *err) MGR_NODISCARD;

#endif
