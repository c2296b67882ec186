/* A layer's router, for the engine and for the ledger. */
#include <math.h>

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

/* Standard deviation (N-1) of a row, in double and in the row's order. */
static double std_of(const unsigned char *row, mgr_dtype type, uint64_t n)
{
    float values[CHUNK];
    double mean = 0, squares = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t at = 0; at < n; at += CHUNK) {
            const size_t some = n - at < CHUNK ? (size_t)(n - at) : CHUNK;
            mgr_cast(values, MGR_DTYPE_F32, row + at * mgr_dtype_size(type), type, some);
            for (size_t i = 0; i < some; i++)
                if (pass == 0)
                    mean += values[i];
                else
                    squares += (values[i] - mean) * (values[i] - mean);
        }
        mean = pass == 0 ? mean / (double)n : mean;
    }
    return n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
}

/* A row of the source with noise of that std, into `out`. */
static void noisy_row(const mgr_job *job, uint32_t target, uint32_t expert,
                      const unsigned char *row, mgr_dtype from, double std, unsigned char *out)
{
    const mgr_tensor *const t = &job->target.tensors.list[target];
    const mgr_dtype to = job->target.layout.types[target];
    const uint32_t layer = mgr_model_layer_key(&job->target.tensors.model, t->layer);
    float values[CHUNK];
    for (uint64_t at = 0; at < t->cols; at += CHUNK) {
        const size_t n = t->cols - at < CHUNK ? (size_t)(t->cols - at) : CHUNK;
        mgr_cast(values, MGR_DTYPE_F32, row + at * mgr_dtype_size(from), from, n);
        mgr_router_add_noise(job->router.seed, layer, expert, (float)std, at, n, values);
        mgr_cast(out + at * mgr_dtype_size(to), to, values, MGR_DTYPE_F32, n);
    }
}

void mgr_engine_add_noise(mgr_engine *e, uint32_t target, const mgr_piece *piece,
                          const unsigned char *data, uint32_t row, uint32_t n)
{
    const mgr_job *const job = e->job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    const mgr_dtype type = job->source.layout.types[piece->source];
    const bool is_router = job->defines[target].op == MGR_OP_ROWS && t->role == MGR_ROLE_ROUTER &&
                           t->plane < MGR_PLANE_EXP_AVG;
    if (!is_router || job->router.noise == 0)
        return;
    const uint32_t *const from = mgr_recipe_from(&job->recipe, t->layer);
    const uint64_t in_bytes = mgr_layout_row_bytes(&job->source.layout, piece->source),
                   out_bytes = mgr_layout_row_bytes(&job->target.layout, target);
    for (uint32_t x = row; x < row + n; x++) {
        const unsigned char *const was = data + (from[x] - piece->row) * in_bytes;
        if (mgr_recipe_is_copy(&job->recipe, t->layer, x))
            noisy_row(job, target, x, was, type, std_of(was, type, t->cols) * job->router.noise,
                      e->out.at + (x - row) * out_bytes);
    }
}
