#include "run/branches.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "form/sidecar.h"
#include "io/file.h"
#include "look/fields.h"
#include "model/moe_layers.h"
#include "run/recipe.h"

#define MAX_TOKENIZER ((uint64_t)256 << 20)

int mgr_branches_init(mgr_job *job, mgr_err *err)
{
    job->n_branches = job->config.n_sources;
    if (!job->n_branches)
        return MGR_OK;
    return mgr_alloc(&job->branches, job->n_branches, sizeof *job->branches, err);
}

void mgr_branches_clear(mgr_job *job)
{
    for (uint32_t i = 0; job->branches && i < job->n_branches; i++) {
        mgr_branch *const b = &job->branches[i];
        if (b->state)
            b->format->release(b->state);
        mgr_layout_clear(&b->side.layout);
        mgr_tensors_clear(&b->side.tensors);
        mgr_catalogue_clear(&b->side.cat);
    }
    mgr_free(job->branches);
    job->branches = NULL;
}

void mgr_branch_begin(mgr_job *job, uint32_t idx)
{
    mgr_config_use_source(&job->config, idx);
    job->source_format = NULL;
    job->source_files = (mgr_source_files){0};
}

void mgr_branch_end(mgr_job *job, uint32_t idx)
{
    mgr_branch *const b = &job->branches[idx];
    mgr_config_keep_source(&job->config, idx);
    b->format = job->source_format;
    b->files = job->source_files;
    b->manifest_records = job->manifest_records;
    b->side.cat = job->source.cat;
    job->source.cat = (mgr_catalogue){0};
}

/* ---- what goes together ---- */

static int fail_apart(const mgr_job *job, uint32_t idx, const char *what, mgr_err *err)
{
    mgr_config_fail(&job->config, "upcycle.method", err,
                    "sources[%u] '%s' is no sibling of sources[0] '%s': %s", idx,
                    job->config.sources[idx].is.path, job->config.sources[0].is.path, what);
    return mgr_hint(err, "the sources of one mixture have one shape, one vocabulary and one way to "
                         "compute");
}

static bool same_layers(const mgr_model *a, const mgr_model *b)
{
    return memcmp(a->window_layers, b->window_layers, sizeof a->window_layers) == 0 &&
           memcmp(a->nope_layers, b->nope_layers, sizeof a->nope_layers) == 0;
}

static bool same_tensors(const mgr_tensors *a, const mgr_tensors *b)
{
    for (uint32_t i = 0; a->n == b->n && i < a->n; i++)
        if (a->list[i].role != b->list[i].role || a->list[i].rows != b->list[i].rows ||
            a->list[i].cols != b->list[i].cols)
            return false;
    return a->n == b->n;
}

static int check_sibling(const mgr_job *job, uint32_t idx, mgr_err *err)
{
    const mgr_tensors *const first = &job->branches[0].side.tensors;
    const mgr_tensors *const other = &job->branches[idx].side.tensors;
    char what[160];
    if (mgr_fields_differ(&first->model, &other->model, what, sizeof what))
        return fail_apart(job, idx, what, err);
    if (!same_layers(&first->model, &other->model))
        return fail_apart(job, idx, "other layers have the window, or no RoPE", err);
    if (!same_tensors(first, other))
        return fail_apart(job, idx, "other tensors (biases or norms)", err);
    return MGR_OK;
}

static bool has_opaque(const mgr_tensors *ts)
{
    for (uint32_t i = 0; i < ts->n; i++)
        if (ts->list[i].opaque)
            return true;
    return false;
}

static int check_siblings(const mgr_job *job, mgr_err *err)
{
    for (uint32_t i = 0; i < job->n_branches; i++) {
        if (job->branches[i].side.tensors.model.experts)
            return fail_apart(job, i, "it is a mixture of experts already", err);
        if (has_opaque(&job->branches[i].side.tensors))
            return fail_apart(job, i, "it has tensors that are moved without being understood",
                              err);
        if (i)
            MGR_TRY(check_sibling(job, i, err));
    }
    return MGR_OK;
}

/* ---- tokenizers ---- */

/* Are two files of this name there, and not the same? */
static int compare_files(const char *a, const char *b, const char *name, bool *differ, mgr_err *err)
{
    mgr_buf path[2] = {{0}, {0}}, text[2] = {{0}, {0}};
    int rc = mgr_buf_fmt(&path[0], err, "%s/%s", a, name);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&path[1], err, "%s/%s", b, name);
    bool both = rc == MGR_OK;
    for (int i = 0; both && i < 2; i++)
        both = mgr_path_exists(path[i].data) && !mgr_is_dir(path[i].data);
    for (int i = 0; both && rc == MGR_OK && i < 2; i++)
        rc = mgr_read_file(path[i].data, MAX_TOKENIZER, &text[i], err);
    *differ = both && rc == MGR_OK &&
              (text[0].len != text[1].len ||
               (text[0].len && memcmp(text[0].data, text[1].data, text[0].len) != 0));
    for (int i = 0; i < 2; i++) {
        mgr_buf_clear(&path[i]);
        mgr_buf_clear(&text[i]);
    }
    return rc;
}

static int tokenizer_of(const mgr_job *job, uint32_t idx, mgr_arena *arena, const char **out,
                        mgr_err *err)
{
    mgr_config *view;
    const mgr_origin origin = {.directory = job->branches[idx].files.directory};
    MGR_TRY(mgr_alloc(&view, 1, sizeof *view, err));
    *view = job->config;
    mgr_config_use_source(view, idx);
    const mgr_output output = {.config = view, .origin = &origin};
    const char *found = NULL;
    int rc = mgr_sidecar_find_tokenizer(&output, arena, &found, err);
    *out = NULL;
    if (rc == MGR_OK && found) /* it may lie in the view */
        rc = mgr_arena_strndup(arena, out, found, strlen(found), err);
    mgr_free(view);
    return rc;
}

static int compare_tokenizers(const mgr_job *job, uint32_t idx, const char *first,
                              const char *other, mgr_err *err)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model", "vocab.json",
                                        "merges.txt", "vocab.txt"};
    for (size_t i = 0; first && other && i < sizeof names / sizeof names[0]; i++) {
        bool differ;
        char what[120];
        MGR_TRY(compare_files(first, other, names[i], &differ, err));
        snprintf(what, sizeof what, "its tokenizer's %s is another one", names[i]);
        if (!differ)
            continue;
        fail_apart(job, idx, what, err);
        return mgr_hint(err, "if that changes no token, name one folder as 'tokenizer' of each "
                             "source");
    }
    return MGR_OK;
}

int mgr_branches_check_tokenizers(const mgr_job *job, mgr_err *err)
{
    mgr_arena arena = {0};
    const char *first = NULL, *other = NULL;
    int rc = job->n_branches ? tokenizer_of(job, 0, &arena, &first, err) : MGR_OK;
    for (uint32_t i = 1; rc == MGR_OK && i < job->n_branches; i++) {
        rc = tokenizer_of(job, i, &arena, &other, err);
        if (rc == MGR_OK)
            rc = compare_tokenizers(job, i, first, other, err);
    }
    mgr_arena_clear(&arena);
    return rc;
}

/* ---- joining ---- */

static int join_catalogues(mgr_job *job, mgr_err *err)
{
    mgr_catalogue *const cat = &job->source.cat;
    mgr_buf packed = {0};
    int rc = MGR_OK;
    for (uint32_t i = 0; rc == MGR_OK && i < job->n_branches; i++) {
        mgr_branch *const b = &job->branches[i];
        b->first_file = (uint32_t)cat->n_files;
        b->first_record = (uint32_t)cat->n_records;
        packed.len = 0;
        rc = mgr_catalogue_pack(&b->side.cat, &packed, err);
        if (rc == MGR_OK)
            rc = mgr_catalogue_unpack(cat, packed.data, packed.len, err);
    }
    mgr_buf_clear(&packed);
    return rc;
}

/* The source's model with experts in the layers where the target has them. */
static mgr_model with_experts(const mgr_job *job)
{
    mgr_model m = job->branches[0].side.tensors.model;
    m.experts = 1;
    if (mgr_moe_layers(job->config.upcycle.moe_layer_freq, MGR_STACK_DECODER, &m) != 0)
        m = job->branches[0].side.tensors.model; /* said when the target is described */
    return m;
}

static int join_layouts(mgr_job *job, mgr_err *err)
{
    mgr_side *const s = &job->source;
    uint32_t *copies = NULL, first_stored = 0;
    MGR_TRY(mgr_layout_init(&s->layout, &s->tensors, &s->cat, false,
                            job->branches[0].side.layout.dtype, err));
    int rc = mgr_alloc(&copies, s->tensors.n, sizeof *copies, err);
    for (uint32_t i = 0; rc == MGR_OK && i < job->n_branches; i++) {
        const mgr_side *const from = &job->branches[i].side;
        rc = mgr_layout_join(&s->layout, &from->layout,
                             s->tensors.place + (size_t)i * s->tensors.n_each, first_stored, copies,
                             err);
        first_stored += (uint32_t)from->cat.n_stored;
    }
    mgr_free(copies);
    return rc == MGR_OK ? mgr_layout_finish(&s->layout, err) : rc;
}

int mgr_branches_join(mgr_job *job, mgr_err *err)
{
    const mgr_model moe = with_experts(job);
    mgr_side *const s = &job->source;
    MGR_TRY(check_siblings(job, err));
    if (mgr_model_is_part(&job->branches[0].side.tensors.model))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "several sources of a model with %s are not supported",
                        mgr_model_feature(&job->branches[0].side.tensors.model, 0));
    MGR_TRY(join_catalogues(job, err));
    MGR_TRY(mgr_tensors_join(&s->tensors, &job->branches[0].side.tensors.model, job->n_branches,
                             mgr_others_find(job->config.upcycle.others), &moe, err));
    MGR_TRY(join_layouts(job, err));
    s->tensors.model.dtype = s->layout.dtype;
    return MGR_OK;
}

bool mgr_is_manifests(const mgr_job *job, uint32_t record)
{
    uint32_t i = 0;
    if (!job->n_branches)
        return record >= job->manifest_records;
    while (i + 1 < job->n_branches && record >= job->branches[i + 1].first_record)
        i++;
    return record - job->branches[i].first_record >= job->branches[i].manifest_records;
}

/* ---- the map ---- */

static int spread(mgr_job *job, uint32_t *from, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const uint64_t n = job->n_branches, experts = c->upcycle.experts;
    if (experts % n != 0) {
        mgr_config_fail(c, "upcycle.experts", err,
                        "'upcycle.experts' is %llu, no multiple of the %llu sources",
                        (unsigned long long)experts, (unsigned long long)n);
        return mgr_hint(err, "name the source of each expert in 'upcycle.experts_from'");
    }
    for (uint64_t e = 0; e < experts; e++)
        from[e] = (uint32_t)(e / (experts / n));
    return MGR_OK;
}

/* A source that makes no expert is one too many. */
static int check_used(const mgr_job *job, const uint32_t *from, mgr_err *err)
{
    for (uint32_t s = 0; s < job->n_branches; s++) {
        bool used = false;
        for (uint64_t e = 0; e < job->config.upcycle.experts && !used; e++)
            used = from[e] == s;
        if (!used)
            return mgr_config_fail(&job->config, "upcycle.experts_from", err,
                                   "'upcycle.experts_from' makes no expert of sources[%u] '%s'", s,
                                   job->config.sources[s].is.path);
    }
    return MGR_OK;
}

int mgr_branches_recipe(mgr_job *job, mgr_err *err)
{
    mgr_config *const c = &job->config;
    const bool listed = c->upcycle.experts_from[0] != '\0';
    uint32_t *from = NULL;
    if (!mgr_config_place(c, "upcycle.experts") && !listed)
        c->upcycle.experts = job->n_branches;
    if (listed) {
        MGR_TRY(mgr_experts_list(job, job->n_branches, &from, err));
    } else {
        MGR_TRY(mgr_arena_alloc(&job->arena, &from, c->upcycle.experts * sizeof *from, err));
        MGR_TRY(spread(job, from, err));
    }
    if (c->upcycle.top_k > c->upcycle.experts)
        return mgr_config_fail(
            c, "upcycle.top_k", err, "'upcycle.top_k' is %llu, must not exceed the %llu experts",
            (unsigned long long)c->upcycle.top_k, (unsigned long long)c->upcycle.experts);
    MGR_TRY(check_used(job, from, err));
    job->recipe.from = from;
    job->recipe.experts = (uint32_t)c->upcycle.experts;
    job->recipe.sources = job->n_branches;
    return MGR_OK;
}
