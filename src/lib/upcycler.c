/*
 * mgr_upcycler: one layer's experts in memory, by the recipe, the maps and the kernels that a run
 * has, and so with the same bytes.
 */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "engine/engine.h"
#include "kern/kern.h"
#include "lib/handle.h"
#include "lib/locale.h"
#include "par/comm.h"
#include "run/lists_file.h"
#include "run/recipe.h"
#include "run/run.h"

struct mgr_upcycler {
    mgr_job *job; /* the recipe's, and the shape of one layer */
    mgr_selection selection;
    mgr_sums *sums; /* [matrix][F] */
    double *scratch;
    uint32_t layer;
    bool gated, has_layer;
    mgr_dtype dtype;
    const void *matrices[MGR_MATRIX_COUNT]; /* the caller's */
};

static const char *const matrix_names[MGR_MATRIX_COUNT] = {"gate", "up", "down"};

/* What experts of one dense FFN are made by; the keys of the other sections are not about a layer.
 */
static bool is_of_layer(const char *key)
{
    static const char *const keys[] = {
        "method",       "experts",      "top_k",        "router_pre_softmax",
        "ratio",        "layer_ratio",  "index_sets",   "seed",
        "matrix_ratio", "shuffle",      "redraw_mean",  "redraw_std",
        "noise_std",    "neurons_file", "expert_width", "slices",
        "cut",          "scale",        "router",       "router_std",
        "router_noise",
    };
    const size_t section = strlen("upcycle.");
    if (!mgr_has_prefix(key, "upcycle."))
        return true;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (strcmp(key + section, keys[i]) == 0)
            return true;
    return false;
}

static int check_keys(const mgr_config *c, mgr_err *err)
{
    for (uint32_t i = 0; i < c->n_written; i++)
        if (!is_of_layer(c->written[i].key)) {
            mgr_config_fail(c, c->written[i].key, err, "'%s' is for a model, and this is one layer",
                            c->written[i].key);
            return mgr_hint(err, "remove '%s', or run mgr-upcycle on the whole model",
                            c->written[i].key);
        }
    const char *const by_layer = c->upcycle.layer_ratio[0]    ? "upcycle.layer_ratio"
                                 : c->upcycle.neurons_file[0] ? "upcycle.neurons_file"
                                                              : NULL;
    if (by_layer && !c->model.num_layers) {
        mgr_config_fail(c, by_layer, err, "'%s' is for a number of layers, which nothing says",
                        by_layer);
        return mgr_hint(err, "set 'model.num_layers'");
    }
    if (c->model.num_layers > MGR_MAX_LAYERS)
        return mgr_config_fail(c, "model.num_layers", err, "a model has at most %d layers",
                               MGR_MAX_LAYERS);
    return MGR_OK;
}

static int check(const mgr_job *job, bool gated, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    if (strcmp(c->mode, "upcycle") != 0)
        return mgr_config_fail(c, "mode", err, "'mode' is '%s', and experts are for 'upcycle'",
                               c->mode);
    if (job->method->takes_sources || job->method->draws_all || job->method->joins)
        return mgr_config_fail(c, "upcycle.method", err,
                               "method '%s' does not make experts of one FFN", job->method->name);
    if (job->router.kind == MGR_ROUTER_FILE)
        return mgr_config_fail(c, "upcycle.router", err, "'upcycle.router: file' is for a model");
    MGR_TRY(check_keys(c, err));
    if (!gated && strcmp(c->upcycle.scale, "published") == 0)
        return mgr_config_fail(c, "upcycle.scale", err,
                               "'upcycle.scale: published' of an FFN without a gate is by its "
                               "activation, which a layer does not say");
    return MGR_OK;
}

static int set_up(mgr_upcycler *u, const char *settings, uint64_t hidden, uint64_t ffn,
                  mgr_err *err)
{
    mgr_job *const job = u->job;
    mgr_model *const m = &job->source.tensors.model;
    if (hidden == 0 || hidden > UINT32_MAX || ffn == 0 || ffn > UINT32_MAX)
        return mgr_fail(err, MGR_ERR_USAGE, "a layer of hidden size %llu and %llu neurons",
                        (unsigned long long)hidden, (unsigned long long)ffn);
    MGR_TRY(mgr_settings_parse(&job->config, settings, "none", "none", err));
    job->method = mgr_method_find(job->config.upcycle.method);
    job->router.kind = mgr_router_find(job->config.upcycle.router);
    MGR_TRY(check(job, u->gated, err));
    m->hidden = hidden;
    m->ffn = ffn;
    m->layers = job->config.model.num_layers ? job->config.model.num_layers : MGR_MAX_LAYERS;
    m->activation = u->gated ? MGR_ACTIVATION_SWIGLU : MGR_ACTIVATION_GELU;
    MGR_TRY(mgr_comm_alone(&job->comm, err));
    MGR_TRY(mgr_lists_file_read(job, err));
    MGR_TRY(mgr_run_recipe(job, err));
    job->target.tensors.model = *m;
    job->target.tensors.model.experts = job->config.upcycle.experts;
    MGR_TRY(mgr_lists_place(job, &job->target.tensors.model, err));
    MGR_TRY(mgr_alloc(&u->sums, MGR_MATRIX_COUNT * ffn, sizeof *u->sums, err));
    MGR_TRY(mgr_alloc(&u->scratch, 2 * ffn, sizeof *u->scratch, err));
    return mgr_selection_init(&u->selection, job, err);
}

static int open_upcycler(const char *settings, uint64_t hidden, uint64_t ffn, bool gated,
                         mgr_upcycler **out, mgr_err *err)
{
    mgr_upcycler *u = NULL;
    *out = NULL;
    MGR_TRY(mgr_alloc(&u, 1, sizeof *u, err));
    u->gated = gated;
    int rc = mgr_alloc(&u->job, 1, sizeof *u->job, err);
    if (rc == MGR_OK)
        rc = set_up(u, settings, hidden, ffn, err);
    if (rc == MGR_OK)
        *out = u;
    else
        mgr_upcycler_close(u);
    return rc;
}

int mgr_upcycler_open(const char *settings, uint64_t hidden, uint64_t ffn, bool gated,
                      mgr_upcycler **out, mgr_err *err)
{
    MGR_ASIDE(open_upcycler(settings, hidden, ffn, gated, out, err));
}

void mgr_upcycler_close(mgr_upcycler *u)
{
    if (!u)
        return;
    mgr_selection_clear(&u->selection);
    mgr_free(u->sums);
    mgr_free(u->scratch);
    if (u->job) {
        mgr_comm_stop(u->job->comm);
        mgr_job_clear(u->job);
    }
    mgr_free(u->job);
    mgr_free(u);
}

uint64_t mgr_upcycler_experts(const mgr_upcycler *u)
{
    return u->job->config.upcycle.experts;
}

uint64_t mgr_upcycler_width(const mgr_upcycler *u)
{
    return u->job->recipe.width;
}

static bool has(const mgr_upcycler *u, uint32_t matrix)
{
    return u->gated || matrix != MGR_MATRIX_GATE;
}

/* As a run refuses a source: what is not finite, and what no sum can hold. */
static int look(const mgr_upcycler *u, uint32_t matrix, mgr_err *err)
{
    const mgr_model *const m = &u->job->source.tensors.model;
    const uint64_t cols = matrix == MGR_MATRIX_DOWN ? m->ffn : m->hidden;
    const size_t n = (size_t)(m->hidden * m->ffn);
    const size_t i = mgr_find_magnitude(u->matrices[matrix], u->dtype, n,
                                        mgr_infinity_bits(u->dtype), UINT32_MAX);
    if (i == n || u->job->config.source.allow_nonfinite)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "%s of layer %u, row %llu, column %llu, is NaN or infinite",
                    matrix_names[matrix], u->layer, (unsigned long long)(i / cols),
                    (unsigned long long)(i % cols));
}

static int add_sums(mgr_upcycler *u, uint32_t matrix, mgr_err *err)
{
    const mgr_model *const m = &u->job->source.tensors.model;
    mgr_sums *const sums = u->sums + matrix * m->ffn;
    const void *const data = u->matrices[matrix];
    memset(sums, 0, m->ffn * sizeof *sums);
    if (!u->job->moments || !has(u, matrix))
        return MGR_OK;
    if (matrix == MGR_MATRIX_DOWN
            ? mgr_sums_add_cols(sums, data, u->dtype, m->hidden, m->ffn, u->scratch)
            : mgr_sums_add_rows(sums, data, u->dtype, m->ffn, m->hidden))
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "%s of layer %u holds values that are not finite, or of magnitudes of "
                        "65536 or more",
                        matrix_names[matrix], u->layer);
    return MGR_OK;
}

static int take_layer(mgr_upcycler *u, uint32_t layer, mgr_dtype dtype, const void *gate,
                      const void *up, const void *down, mgr_err *err)
{
    u->has_layer = false;
    if (layer >= u->job->source.tensors.model.layers)
        return mgr_fail(err, MGR_ERR_USAGE, "there are %llu layers, and no layer %u",
                        (unsigned long long)u->job->source.tensors.model.layers, layer);
    if (!mgr_dtype_is_weight(dtype) || !up || !down || !gate != !u->gated)
        return mgr_fail(err, MGR_ERR_USAGE, "a layer is %s, of bfloat16, float16 or float32",
                        u->gated ? "gate, up and down" : "up and down, and no gate");
    u->layer = layer;
    u->dtype = dtype;
    u->matrices[MGR_MATRIX_GATE] = gate;
    u->matrices[MGR_MATRIX_UP] = up;
    u->matrices[MGR_MATRIX_DOWN] = down;
    for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++) {
        if (has(u, m))
            MGR_TRY(look(u, m, err));
        MGR_TRY(add_sums(u, m, err));
    }
    u->selection.layer = MGR_NONE;
    MGR_TRY(mgr_selection_set(&u->selection, u->job, layer, u->sums, err));
    u->has_layer = true;
    return MGR_OK;
}

int mgr_upcycler_layer(mgr_upcycler *u, uint32_t layer, mgr_dtype dtype, const void *gate,
                       const void *up, const void *down, mgr_err *err)
{
    MGR_ASIDE(take_layer(u, layer, dtype, gate, up, down, err));
}

static int make_expert(const mgr_upcycler *u, uint32_t expert, mgr_dtype dtype,
                       void *const out[MGR_MATRIX_COUNT], mgr_err *err)
{
    const mgr_job *const job = u->job;
    if (!u->has_layer || expert >= job->config.upcycle.experts || !mgr_dtype_is_weight(dtype))
        return mgr_fail(err, MGR_ERR_USAGE,
                        u->has_layer ? "there are %llu experts, of bfloat16, float16 or float32"
                                     : "none of the %llu experts is made before there is a layer",
                        (unsigned long long)job->config.upcycle.experts);
    for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++) {
        const mgr_expert x = mgr_selection_expert(&u->selection, job, expert, (mgr_matrix)m);
        if (!out[m] || !has(u, m))
            continue;
        if (m == MGR_MATRIX_DOWN)
            mgr_expert_down_rows(job->method, &x, 0, x.hidden, u->matrices[m], u->dtype, out[m],
                                 dtype);
        else
            mgr_expert_rows(job->method, &x, 0, x.width, u->matrices[m], 0, u->dtype, out[m],
                            dtype);
    }
    return MGR_OK;
}

int mgr_upcycler_expert(const mgr_upcycler *u, uint32_t expert, mgr_dtype dtype, void *gate,
                        void *up, void *down, mgr_err *err)
{
    void *const out[MGR_MATRIX_COUNT] = {gate, up, down};
    MGR_ASIDE(make_expert(u, expert, dtype, out, err));
}

static int make_router(const mgr_upcycler *u, uint32_t layer, mgr_dtype dtype, void *out,
                       mgr_err *err)
{
    const mgr_job *const job = u->job;
    if (!mgr_dtype_is_weight(dtype))
        return mgr_fail(err, MGR_ERR_USAGE, "a router is of bfloat16, float16 or float32");
    mgr_router_fill(&job->router, layer, (uint32_t)job->config.upcycle.experts,
                    job->source.tensors.model.hidden, out, dtype);
    return MGR_OK;
}

int mgr_upcycler_router(const mgr_upcycler *u, uint32_t layer, mgr_dtype dtype, void *out,
                        mgr_err *err)
{
    MGR_ASIDE(make_router(u, layer, dtype, out, err));
}
