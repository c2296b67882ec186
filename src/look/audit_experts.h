/*
 * The experts of an output against its ledger: part of mgr-verify.
 */
#ifndef MGR_LOOK_AUDIT_EXPERTS_H
#define MGR_LOOK_AUDIT_EXPERTS_H

#include <jansson.h>

#include "look/findings.h"
#include "look/view.h"
#include "mgr/err.h"

/* Where the manifest says that experts were made: are an expert's checksums in the ledger those of
 * the output; do no two experts of a layer have the same matrices, unless they were to be copies;
 * are as many neurons in each set, and kept, as the configuration asks for; has a sample of what
 * was drawn the moments that the ledger gives? `files` are those of
 * the manifest's target by their paths. Rank 0 only. */
int mgr_audit_experts(mgr_findings *report, const char *directory, const mgr_view *view,
                      const json_t *manifest, const json_t *files, mgr_err *err) MGR_NODISCARD;

#endif
