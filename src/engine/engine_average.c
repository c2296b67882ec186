/* What several sources have each and the target once: engine/engine.h. */
#include <assert.h>

#include "engine/engine.h"
#include "kern/kern.h"

typedef struct parts {
    const unsigned char *bytes[MGR_CONFIG_SOURCES];
    mgr_dtype types[MGR_CONFIG_SOURCES];
    uint32_t n;
} parts;

/* Where each source's rows lie in the unit, in the order of the sources. */
static parts find_parts(const mgr_engine *e, const mgr_unit *unit, uint32_t p,
                        const unsigned char *data)
{
    const mgr_layout *const from = &e->job->source.layout;
    const mgr_tensor *const of = &from->tensors->list[e->job->plan.pieces[p].source];
    parts out = {.n = 0};
    for (uint32_t i = unit->piece; i < unit->piece + unit->n_pieces; i++) {
        const mgr_piece *const piece = &e->job->plan.pieces[i];
        const mgr_tensor *const t = &from->tensors->list[piece->source];
        if (t->role == of->role) {
            assert(t->source == out.n && out.n < MGR_CONFIG_SOURCES && t->layer == of->layer);
            out.bytes[out.n] = data;
            out.types[out.n++] = from->types[piece->source];
        }
        data += piece->rows * mgr_layout_row_bytes(from, piece->source);
    }
    return out;
}

int mgr_engine_average(mgr_engine *e, const mgr_unit *unit, uint32_t p, uint32_t target,
                       const unsigned char *data, mgr_err *err)
{
    const mgr_piece *const piece = &e->job->plan.pieces[p];
    const mgr_layout *const to = &e->job->target.layout;
    const uint64_t cols = to->tensors->list[target].cols;
    const uint64_t step = e->job->plan.chunk_bytes / mgr_layout_row_bytes(to, target);
    parts in = find_parts(e, unit, p, data);
    assert(in.n == e->job->source.tensors.sources && step > 0);
    for (uint64_t r = 0; r < piece->rows; r += step) {
        const uint64_t n = piece->rows - r < step ? piece->rows - r : step;
        const void *at[MGR_CONFIG_SOURCES];
        for (uint32_t s = 0; s < in.n; s++)
            at[s] = in.bytes[s] + r * cols * mgr_dtype_size(in.types[s]);
        mgr_average(e->out.at, to->types[target], at, in.types, in.n, (size_t)(n * cols));
        MGR_TRY(mgr_engine_write(e, target, piece->row + r, n, e->out.at, err));
    }
    return MGR_OK;
}
