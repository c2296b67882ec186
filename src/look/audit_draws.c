#include "look/audit_draws.h"

#include <math.h>

#include "core/mem.h"
#include "kern/kern.h"

#define SAMPLE ((uint64_t)16)
#define DEVIATIONS 8.0       /* no true draw is as far off: one in 10^15 */
#define ROUNDING (1.0 / 256) /* of bfloat16 */

typedef struct moments {
    double sum, squares; /* of differences from the ledger's mean */
    uint64_t n;
} moments;

static bool has(const unsigned char *set, uint64_t neuron)
{
    return set[neuron / 8] >> neuron % 8 & 1;
}

static void add_row(moments *m, const mgr_drawn *d, const float *row)
{
    for (uint64_t i = 0; i < d->cols; i++) {
        const double off = (double)row[i] - d->mean;
        if (d->by_column && !has(d->set, i))
            continue;
        m->sum += off;
        m->squares += off * off;
        m->n++;
    }
}

static bool fits(const moments *m, const mgr_drawn *d)
{
    const double n = (double)m->n, off = m->sum / n, std = sqrt(m->squares / n);
    const double rounding = ROUNDING * (fabs(d->mean) + d->std) + 1e-7;
    return fabs(off) <= DEVIATIONS * d->std / sqrt(n) + rounding &&
           fabs(std - d->std) <= DEVIATIONS * d->std / sqrt(2 * n) + rounding;
}

int mgr_drawn_check(mgr_rows *in, const mgr_drawn *d, bool *good, mgr_err *err)
{
    const mgr_dtype dtype = in->view->layout.types[d->tensor];
    moments m = {0};
    void *raw = NULL;
    float *row = NULL;
    *good = true;
    if (isnan(d->mean) || isnan(d->std))
        return MGR_OK;
    int rc = mgr_alloc(&raw, d->cols, mgr_dtype_size(dtype), err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&row, d->cols, sizeof *row, err);
    for (uint64_t r = 0, seen = 0; rc == MGR_OK && r < d->rows && seen < SAMPLE; r++) {
        if (!d->by_column && !has(d->set, r))
            continue;
        rc = mgr_rows_logical(in, d->tensor, r, 1, raw, err);
        if (rc == MGR_OK) {
            mgr_cast(row, MGR_DTYPE_F32, raw, dtype, d->cols);
            add_row(&m, d, row);
        }
        seen++;
    }
    *good = rc != MGR_OK || m.n == 0 || fits(&m, d);
    mgr_free(raw);
    mgr_free(row);
    return rc;
}
