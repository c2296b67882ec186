/*
 * A mixture seen as the dense model whose FFN has the neurons of some experts side by side, and
 * those of the shared expert behind them: rows of gate and up, columns of down. That is only other
 * boxes over the same bytes; all that follows lays a dense model out anew.
 */
#include <string.h>

#include "core/mem.h"
#include "run/lists_file.h"
#include "run/recipe.h"

/* Where tensors of the mixture are in the dense model. */
typedef struct places {
    uint32_t *at; /* [tensors of the mixture] */
    uint64_t *row, *col;
} places;

/* There are no experts in the end, whose keys would say nothing. */
static int refuse_keys(const mgr_config *c, mgr_err *err)
{
    static const char *const allowed[] = {
        "upcycle.method",
        "upcycle.experts",
        "upcycle.experts_from",
        "upcycle.experts_file",
        "upcycle.expert_weight",
        "upcycle.seed",
        NULL,
    };
    return mgr_config_keep_to(
        c, mgr_config_tables, allowed,
        "about experts, and 'upcycle.method: concatenate' makes a dense model", err);
}

static int refuse_model(const mgr_job *job, mgr_err *err)
{
    const mgr_tensors *const ts = &job->source.tensors;
    const mgr_model *const m = &ts->model;
    const char *const why = m->experts == 0            ? "is dense already"
                            : m->bias_mlp              ? "has biases in its experts, which the "
                                                         "router weighs"
                            : m->shared_switch         ? "has a gate for its shared expert"
                            : m->encoder_layers        ? "has two stacks of layers"
                            : ts->first_opaque < ts->n ? "has tensors that are moved without being "
                                                         "understood"
                                                       : NULL;
    return why ? mgr_config_fail(
                     &job->config, "upcycle.method", err,
                     "'upcycle.method: concatenate' joins the experts of a mixture; this "
                     "source %s",
                     why)
               : MGR_OK;
}

/* Which experts, into job->recipe.from and job->joined. */
static int choose(mgr_job *job, mgr_err *err)
{
    mgr_config *const c = &job->config;
    const uint64_t all = job->source.tensors.model.experts;
    uint32_t *from = NULL;
    if (c->upcycle.experts_file[0] && c->upcycle.experts_from[0])
        return mgr_config_fail(
            c, "upcycle.experts_file", err,
            "'upcycle.experts_file' and 'upcycle.experts_from' say the same: give one");
    if (c->upcycle.experts_file[0]) {
        MGR_TRY(mgr_lists_of_experts(job, err));
        MGR_TRY(mgr_lists_place(job, &job->source.tensors.model, err));
    } else if (c->upcycle.experts_from[0]) {
        MGR_TRY(mgr_experts_list(job, all, &from, err));
    } else {
        if (mgr_config_place(c, "upcycle.experts") && c->upcycle.experts != all) {
            mgr_config_fail(c, "upcycle.experts", err,
                            "'upcycle.experts' is %llu, the source has %llu",
                            (unsigned long long)c->upcycle.experts, (unsigned long long)all);
            return mgr_hint(err, "name those to take in 'upcycle.experts_from' or "
                                 "'upcycle.experts_file'");
        }
        c->upcycle.experts = all;
        MGR_TRY(mgr_arena_alloc(&job->arena, &from, all * sizeof *from, err));
        for (uint32_t e = 0; e < all; e++)
            from[e] = e;
    }
    if (from)
        job->recipe.from = from;
    job->recipe.experts = job->joined = (uint32_t)c->upcycle.experts;
    return MGR_OK;
}

static int dense_model(const mgr_job *job, mgr_model *out, mgr_err *err)
{
    const mgr_model *const m = &job->source.tensors.model;
    *out = *m;
    out->ffn = job->joined_width + m->shared_ffn;
    if (mgr_model_moe_layers(m) < m->layers && m->ffn != out->ffn)
        return mgr_config_fail(
            &job->config, "upcycle.method", err,
            "the source's dense layers have %llu neurons, and %llu would be side "
            "by side in the others",
            (unsigned long long)m->ffn, (unsigned long long)out->ffn);
    out->experts = out->expert_ffn = out->top_k = out->shared_ffn = 0;
    out->bias_router = false;
    out->router = (mgr_router_kind){0};
    memset(out->dense_layers, 0, sizeof out->dense_layers);
    return MGR_OK;
}

/* Is the expert one of those that stay, and the how manieth? */
static int place_expert(const mgr_job *job, const mgr_tensor *t, uint64_t *slot, bool *found,
                        mgr_err *err)
{
    const uint32_t *const from = mgr_recipe_from(&job->recipe, t->layer);
    *found = false;
    for (uint32_t j = 0; j < job->joined; j++) {
        if (from[j] != t->expert)
            continue;
        if (*found)
            return mgr_config_fail(&job->config, "upcycle.method", err,
                                   "expert %u of layer %u is named twice", t->expert, t->layer);
        *slot = j;
        *found = true;
    }
    return MGR_OK;
}

static int place_tensor(const mgr_job *job, const mgr_tensors *dense, uint32_t i, places *p,
                        mgr_err *err)
{
    const mgr_model *const m = &job->source.tensors.model;
    const mgr_tensor *const t = &job->source.tensors.list[i];
    const bool shared = mgr_role_is_shared(t->role);
    const mgr_role role = mgr_role_unshared(t->role);
    uint64_t slot = 0;
    bool found = true;
    if (t->expert != MGR_NONE)
        MGR_TRY(place_expert(job, t, &slot, &found, err));
    p->at[i] = found ? mgr_tensors_find(dense, role, t->layer, MGR_NONE) : MGR_NONE;
    const uint64_t first = shared ? job->joined_width : slot * mgr_model_expert_ffn(m);
    p->row[i] = role == MGR_ROLE_DOWN ? 0 : first;
    p->col[i] = role == MGR_ROLE_DOWN ? first : 0;
    return MGR_OK;
}

/* job->source becomes the dense model. The layout borrows the list of tensors by its address, so
 * that the new list takes the old one's place before boxes are added. */
static int replace(mgr_job *job, const mgr_model *model, mgr_err *err)
{
    mgr_side *const s = &job->source;
    mgr_tensors dense = {0}, mixture = s->tensors;
    mgr_layout old = s->layout;
    places p = {0};
    MGR_TRY(mgr_tensors_init(&dense, model, err));
    s->layout = (mgr_layout){0};
    int rc = mgr_alloc(&p.at, mixture.n, sizeof *p.at, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&p.row, mixture.n, sizeof *p.row, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&p.col, mixture.n, sizeof *p.col, err);
    for (uint32_t i = 0; rc == MGR_OK && i < mixture.n; i++)
        rc = place_tensor(job, &dense, i, &p, err);
    s->tensors = dense;
    old.tensors = &mixture;
    if (rc == MGR_OK)
        rc = mgr_layout_init(&s->layout, &s->tensors, &s->cat, false, old.dtype, err);
    if (rc == MGR_OK)
        rc = mgr_layout_compose(&s->layout, &old, p.at, p.row, p.col, err);
    if (rc == MGR_OK)
        rc = mgr_layout_finish(&s->layout, err);
    mgr_free(p.at);
    mgr_free(p.row);
    mgr_free(p.col);
    mgr_layout_clear(&old);
    mgr_tensors_clear(&mixture);
    return rc;
}

int mgr_run_concat(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const uint64_t width = mgr_model_expert_ffn(&job->source.tensors.model);
    mgr_model model;
    if (!job->method || !job->method->joins)
        return MGR_OK;
    MGR_TRY(refuse_keys(c, err));
    MGR_TRY(refuse_model(job, err));
    MGR_TRY(choose(job, err));
    job->joined_width = job->joined * width;
    job->joined_weight =
        (float)(c->upcycle.expert_weight > 0 ? c->upcycle.expert_weight : 1.0 / job->joined);
    MGR_TRY(dense_model(job, &model, err));
    MGR_TRY(replace(job, &model, err));
    job->source.tensors.model.dtype = job->source.layout.dtype;
    job->recipe = (mgr_recipe){0};
    job->method = NULL;
    return MGR_OK;
}
