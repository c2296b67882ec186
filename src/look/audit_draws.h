/*
 * What was drawn anew in an output, against the moments that the ledger says the draws had: part of
 * mgr-verify.
 */
#ifndef MGR_LOOK_AUDIT_DRAWS_H
#define MGR_LOOK_AUDIT_DRAWS_H

#include "look/rows.h"

/* One matrix of an expert, and what the ledger says of it. */
typedef struct mgr_drawn {
    uint32_t tensor; /* of the view */
    bool by_column;  /* its neurons are columns, as down's are */
    uint64_t rows, cols;
    const unsigned char *set; /* bit i of byte j is neuron 8j+i */
    double mean, std;
} mgr_drawn;

/* Has a sample of at most 16 rows these moments, as far as so many draws tell? True also of a
 * matrix of which nothing was drawn. Errors: of reading. Local. */
int mgr_drawn_check(mgr_rows *in, const mgr_drawn *drawn, bool *good, mgr_err *err) MGR_NODISCARD;

#endif
