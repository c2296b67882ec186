/* A layer's router, for the engine and for the ledger. */
#include "engine/engine.h"
#include "io/reader.h"
#include "kern/kern.h"

#define CHUNK 1024

/* Elements of the file's matrix, one behind the other. */
static int from_file(const mgr_reader *in, const mgr_stored *s, void *out, mgr_dtype to,
                     mgr_err *err)
{
    const uint64_t n = s->shape[0] * s->shape[1];
    unsigned char *into = out, raw[CHUNK * sizeof(float)];
    for (uint64_t at = 0; at < n; at += CHUNK) {
        const size_t some = n - at < CHUNK ? (size_t)(n - at) : CHUNK;
        const size_t bytes = mgr_dtype_size(s->dtype);
        MGR_TRY(mgr_reader_read(in, s->offset + at * bytes, raw, some * bytes, err));
        if (mgr_largest_magnitude(raw, s->dtype, some) >= mgr_overflow_bits(s->dtype, to))
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "'%s' tensor '%s' holds a value that is not finite, or that %s cannot "
                            "hold, from element %llu on",
                            in->name, s->name, mgr_dtype_name(to), (unsigned long long)at);
        mgr_cast(into, to, raw, s->dtype, some);
        into += some * mgr_dtype_size(to);
    }
    return MGR_OK;
}

int mgr_job_router(const mgr_job *job, uint32_t layer, void *out, mgr_dtype to, mgr_err *err)
{
    const mgr_model *const m = &job->target.tensors.model;
    mgr_reader in;
    if (job->router.kind != MGR_ROUTER_FILE) {
        mgr_router_fill(&job->router, mgr_model_layer_key(m, layer), (uint32_t)m->experts,
                        m->hidden, out, to);
        return MGR_OK;
    }
    const mgr_stored *const s = &job->router_file.stored[job->router_of_layer[layer]];
    MGR_TRY(mgr_reader_open(&in, job->router_file.files[s->file].path, err));
    const int rc = from_file(&in, s, out, to, err);
    mgr_reader_close(&in);
    return rc;
}
