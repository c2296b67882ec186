#include "run/found.h"

#include <stdio.h>
#include <string.h>

#include "cfg/schema.h"
#include "cfg/value.h"
#include "core/mem.h"
#include "io/file.h"
#include "io/reader.h"
#include "look/manifest_read.h"
#include "look/verify.h"
#include "mgr/rng.h"
#include "run/run.h"

/* ---- the configuration that made it ---- */

/* Keys that say where something is, or how it is done: they change no byte of the weights. Those of
 * `model:` are of the source, and what they change shows in the model. */
static bool is_of_no_matter(const char *key)
{
    return mgr_has_prefix(key, "source.") || mgr_has_prefix(key, "model.") ||
           strcmp(key, "memory_per_rank") == 0 || strcmp(key, "io_threads") == 0 ||
           strcmp(key, "target.path") == 0 || strcmp(key, "target.sha256") == 0;
}

static int value_of(const mgr_config *c, const char *name, mgr_buf *out, mgr_err *err)
{
    const mgr_key *const row = mgr_schema_row(mgr_config_tables, c, name);
    return row ? mgr_value_dump(c, row, out, err) : mgr_buf_text(out, "(not a key of it)", err);
}

static int compare_key(const mgr_config *made, const mgr_config *now, const char *name,
                       mgr_err *err)
{
    mgr_buf a = {0}, b = {0};
    int rc = value_of(made, name, &a, err);
    if (rc == MGR_OK)
        rc = value_of(now, name, &b, err);
    if (rc == MGR_OK && strcmp(a.data ? a.data : "", b.data ? b.data : "") != 0) {
        rc = mgr_fail(err, MGR_ERR_CONFIG,
                      "the output was made with '%s: %.200s', the configuration says '%.200s'",
                      name, a.data ? a.data : "", b.data ? b.data : "");
        mgr_hint(err, "verify with the configuration that its " MGR_MANIFEST " holds");
    }
    mgr_buf_clear(&a);
    mgr_buf_clear(&b);
    return rc;
}

/* The same key by key; the manifest holds what a run has settled, as ours is now. */
static int compare_configs(const mgr_job *job, const char *text, mgr_err *err)
{
    mgr_config *made = NULL;
    mgr_key_list all;
    mgr_schema_list(mgr_config_tables, &all);
    MGR_TRY(mgr_alloc(&made, 1, sizeof *made, err));
    int rc = mgr_config_parse(made, mgr_config_tables, "the configuration in " MGR_MANIFEST, text,
                              strlen(text), NULL, 0, err);
    if (rc == MGR_OK && made->n_sources != job->config.n_sources)
        rc = mgr_fail(err, MGR_ERR_CONFIG,
                      "the output was made of %u sources, the configuration lists %u",
                      made->n_sources, job->config.n_sources);
    for (size_t i = 0; rc == MGR_OK && i < all.n; i++)
        if (!is_of_no_matter(all.keys[i]->name))
            rc = compare_key(made, &job->config, all.keys[i]->name, err);
    mgr_free(made);
    return rc;
}

/* Rank 0. Without a manifest, or with a damaged one, the bytes themselves have to tell. */
static int check_manifest(const mgr_job *job, mgr_found *f, mgr_err *err)
{
    mgr_manifest_state state;
    MGR_TRY(mgr_manifest_read(job->config.target.path, &state, &f->manifest, err));
    if (state == MGR_MANIFEST_DAMAGED)
        return mgr_findings_add(&f->findings, MGR_MANIFEST, NULL, UINT64_MAX,
                                "its own digest is not that of its text", err);
    const json_t *const contract = json_object_get(f->manifest, "contract");
    const char *const config = json_string_value(json_object_get(f->manifest, "config"));
    if (contract && json_integer_value(contract) != MGR_CONTRACT_VERSION)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "the output was made under contract %lld, this program has contract %d",
                        (long long)json_integer_value(contract), MGR_CONTRACT_VERSION);
    return config ? compare_configs(job, config, err) : MGR_OK;
}

/* ---- its files ---- */

/* The output as a source: with the vocabulary's true size, which not every format keeps. */
static void as_source(const mgr_job *job, mgr_config *c)
{
    const uint64_t iteration = job->config.target.iteration;
    memset(c, 0, sizeof *c);
    memcpy(c->source.path, job->config.target.path, sizeof c->source.path);
    memcpy(c->source.unknown, "warn", sizeof "warn");
    if (iteration)
        snprintf(c->source.iteration, sizeof c->source.iteration, "%llu",
                 (unsigned long long)iteration);
    else
        memcpy(c->source.iteration, "latest", sizeof "latest");
    c->model.vocab_size = job->target.tensors.model.vocab;
    c->source.planes = job->target.tensors.kept;
    c->model.bos_token_id = c->model.eos_token_id = -1;
}

static int read_header(const mgr_found *f, mgr_catalogue *cat, const char *path, void **held,
                       mgr_err *err)
{
    mgr_reader reader;
    uint32_t file;
    MGR_TRY(mgr_reader_open(&reader, path, err));
    int rc = mgr_catalogue_add_file(cat, path, reader.size, &file, err);
    if (rc == MGR_OK)
        rc = f->format->read(cat, file, &reader, held, err);
    mgr_reader_close(&reader);
    return rc;
}

static int read_headers(const mgr_found *f, const mgr_config *config, mgr_buf *packed, mgr_err *err)
{
    mgr_arena arena = {0};
    mgr_catalogue cat = {0};
    mgr_source_files files = {0};
    int rc = f->format->find(config, &arena, &files, err);
    for (size_t i = 0; rc == MGR_OK && i < files.n; i++)
        rc = read_header(f, &cat, files.paths[i], &files.held, err);
    if (f->format->forget)
        f->format->forget(files.held);
    if (rc == MGR_OK)
        rc = mgr_catalogue_pack(&cat, packed, err);
    mgr_catalogue_clear(&cat);
    mgr_arena_clear(&arena);
    return rc;
}

/* Is it the output that is wrong, and not that it could not be read? */
static bool is_of_output(int rc)
{
    return rc == MGR_ERR_FORMAT || rc == MGR_ERR_UNSUPPORTED || rc == MGR_ERR_NOT_FOUND ||
           rc == MGR_ERR_CONFIG;
}

/* Rank 0. */
static int look(const mgr_job *job, mgr_found *f, const mgr_config *config, mgr_buf *packed,
                mgr_err *err)
{
    mgr_err why = MGR_ERR_INIT;
    if (!mgr_path_exists(job->config.target.path)) {
        mgr_fail(err, MGR_ERR_NOT_FOUND, "target.path '%s' does not exist",
                 job->config.target.path);
        return mgr_hint(err, "--verify compares an output that is there");
    }
    MGR_TRY(check_manifest(job, f, err));
    const int rc = read_headers(f, config, packed, &why);
    if (rc == MGR_OK)
        return MGR_OK;
    packed->len = 0;
    if (is_of_output(rc))
        return mgr_findings_add(&f->findings, NULL, NULL, UINT64_MAX, why.msg, err);
    *err = why;
    return rc;
}

/* ---- the model that it shows ---- */

/* Elements that do not lie one behind the other: no run writes that. */
static bool is_packed(const mgr_stored *s)
{
    uint64_t step = 1;
    for (uint32_t d = s->ndim; d-- > 0; step *= s->shape[d])
        if (s->shape[d] == 0 || s->stride[d] != step)
            return false;
    return s->ndim > 0;
}

static int compare_tensor(const mgr_job *job, mgr_found *f, uint32_t i, mgr_err *err)
{
    const mgr_tensor *const a = &job->target.tensors.list[i], *const b = &f->side.tensors.list[i];
    const mgr_layout *const l = &f->side.layout;
    const mgr_dtype wanted = job->target.layout.types[i];
    char label[96], what[128] = "";
    if (mgr_tensors_match(&f->side.tensors, a) != i)
        snprintf(what, sizeof what, "is not there");
    else if (a->rows != b->rows || a->cols != b->cols)
        snprintf(what, sizeof what, "is %llu x %llu, not %llu x %llu", (unsigned long long)b->rows,
                 (unsigned long long)b->cols, (unsigned long long)a->rows,
                 (unsigned long long)a->cols);
    else if (l->types[i] != wanted)
        snprintf(what, sizeof what, "is of type %s, not %s", mgr_dtype_name(l->types[i]),
                 mgr_dtype_name(wanted));
    for (size_t k = l->first_box[i]; !what[0] && k < l->first_box[i + 1]; k++)
        if (!is_packed(&l->cat->stored[l->boxes[k].stored]))
            snprintf(what, sizeof what, "is stored with gaps");
    return what[0] ? mgr_findings_add(&f->findings, NULL, mgr_tensor_label(a, label, sizeof label),
                                      UINT64_MAX, what, err)
                   : MGR_OK;
}

static int compare_models(const mgr_job *job, mgr_found *f, mgr_err *err)
{
    const mgr_tensors *const wanted = &job->target.tensors, *const found = &f->side.tensors;
    if (wanted->n != found->n || !mgr_same_kind(&wanted->model, &found->model))
        return mgr_findings_add(&f->findings, NULL, NULL, UINT64_MAX,
                                "it shows another model than the configuration makes", err);
    f->comparable = true;
    const size_t before = json_array_size(f->findings.list);
    for (uint32_t i = 0; i < wanted->n; i++)
        MGR_TRY(compare_tensor(job, f, i, err));
    f->comparable = json_array_size(f->findings.list) == before;
    return MGR_OK;
}

static int lay_out(mgr_found *f, const mgr_config *config, mgr_err *err)
{
    void *state = NULL;
    mgr_side *const s = &f->side;
    const int rc =
        mgr_source_lay_out(f->format, &s->cat, config, &state, &s->tensors, &s->layout, err);
    f->format->release(state);
    return rc;
}

/* All ranks alike. */
static int describe(const mgr_job *job, mgr_found *f, const mgr_config *config, mgr_err *err)
{
    mgr_err why = MGR_ERR_INIT;
    const int rc = lay_out(f, config, &why);
    if (rc == MGR_OK)
        return compare_models(job, f, err);
    if (is_of_output(rc))
        return mgr_findings_add(&f->findings, NULL, NULL, UINT64_MAX, why.msg, err);
    *err = why;
    return rc;
}

int mgr_found_open(mgr_job *job, mgr_found *f, mgr_err *err)
{
    mgr_config *config = NULL;
    mgr_buf packed = {0};
    *f = (mgr_found){.format = mgr_source_find(job->target_format->name)};
    int rc = mgr_alloc(&config, 1, sizeof *config, err);
    if (rc == MGR_OK && !f->format)
        rc = mgr_fail(err, MGR_ERR_UNSUPPORTED, "what is written as '%s' cannot be read back",
                      job->target_format->name);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK) {
        as_source(job, config);
        rc = mgr_agree_root(job, job->rank == 0 ? look(job, f, config, &packed, err) : MGR_OK, err);
    }
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &packed, err);
    if (rc == MGR_OK && packed.len) {
        rc = mgr_catalogue_unpack(&f->side.cat, packed.data, packed.len, err);
        if (rc == MGR_OK)
            rc = describe(job, f, config, err);
    }
    mgr_buf_clear(&packed);
    mgr_free(config);
    return mgr_agree(job->comm, rc, err);
}

/* Both have the same list of tensors, which stays where it is. */
void mgr_found_take(mgr_job *job, mgr_found *f)
{
    const mgr_catalogue cat = job->target.cat;
    const mgr_layout layout = job->target.layout;
    job->target.cat = f->side.cat;
    job->target.layout = f->side.layout;
    job->target.layout.cat = &job->target.cat;
    job->target.layout.tensors = &job->target.tensors;
    f->side.cat = cat;
    f->side.layout = layout;
    f->side.layout.cat = &f->side.cat;
}

void mgr_found_clear(mgr_found *f)
{
    mgr_layout_clear(&f->side.layout);
    mgr_tensors_clear(&f->side.tensors);
    mgr_catalogue_clear(&f->side.cat);
    mgr_findings_clear(&f->findings);
    json_decref(f->manifest);
}
