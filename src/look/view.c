#include "look/view.h"

#include <stdio.h>
#include <string.h>

#include "core/say_run.h"
#include "fmt/safetensors.h"
#include "fmt/torch_file.h"
#include "form/source.h"
#include "io/file.h"

typedef int (*file_reader)(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                           mgr_err *err);

static int read_file_of(mgr_view *v, const mgr_source_format *format, const char *path, void **held,
                        mgr_err *err)
{
    mgr_reader reader;
    uint32_t file;
    MGR_TRY(mgr_reader_open(&reader, path, err));
    int rc = mgr_catalogue_add_file(&v->cat, path, reader.size, &file, err);
    if (rc == MGR_OK)
        rc = format->read(&v->cat, file, &reader, held, err);
    mgr_reader_close(&reader);
    return rc;
}

static int read_file(mgr_view *v, const char *path, file_reader read_header, mgr_err *err)
{
    mgr_reader reader;
    uint32_t file;
    MGR_TRY(mgr_reader_open(&reader, path, err));
    int rc = mgr_catalogue_add_file(&v->cat, path, reader.size, &file, err);
    if (rc == MGR_OK)
        rc = read_header(&v->cat, file, &reader, err);
    mgr_reader_close(&reader);
    return rc;
}

/* A single file: safetensors and the flat pytorch_model*.bin by their names; everything else is
 * left to the reader of Megatron's files, which knows what it refuses. */
static int open_file(mgr_view *v, const char *path, mgr_err *err)
{
    const bool safetensors = mgr_has_suffix(path, ".safetensors");
    v->format = safetensors ? "safetensors" : "torch";
    return read_file(v, path,
                     safetensors                    ? mgr_safetensors_read
                     : mgr_has_suffix(path, ".bin") ? mgr_torch_file_read_flat
                                                    : mgr_torch_file_read,
                     err);
}

/* Model and layout, as a run would derive them. */
static int describe(mgr_view *v, const mgr_source_format *format, const mgr_config *config,
                    mgr_err *err)
{
    void *state = NULL;
    int rc = mgr_source_lay_out(format, &v->cat, config, &state, &v->tensors, &v->layout, err);
    if (rc == MGR_OK)
        rc = format->summary(state, &v->split, err);
    format->release(state);
    v->has_model = rc == MGR_OK;
    return rc;
}

/* What there is to say of a source where nobody says it. */
static mgr_config plain_config(const char *path, const char *unknown)
{
    mgr_config config = {0};
    snprintf(config.source.unknown, sizeof config.source.unknown, "%s", unknown);
    snprintf(config.source.path, sizeof config.source.path, "%s", path);
    snprintf(config.source.iteration, sizeof config.source.iteration, "latest");
    config.model.bos_token_id = config.model.eos_token_id = -1;
    return config;
}

static int open_source(mgr_view *v, const mgr_source_format *format, const mgr_config *config,
                       mgr_err *err)
{
    mgr_source_files files = {0};
    int rc = format->find(config, &v->arena, &files, err);
    mgr_say_work("files", files.n, 1);
    for (size_t i = 0; rc == MGR_OK && i < files.n; i++) {
        rc = read_file_of(v, format, files.paths[i], &files.held, err);
        if (rc == MGR_OK)
            rc = mgr_say_step(1, err);
    }
    if (format->forget)
        format->forget(files.held);
    MGR_TRY(rc);
    v->format = format->name;
    v->directory = files.directory;
    /* a checkpoint that cannot be a source can still be looked at */
    mgr_err why = MGR_ERR_INIT;
    rc = describe(v, format, config, &why);
    if (rc == MGR_OK)
        return MGR_OK;
    if (rc == MGR_ERR_NOMEM || rc == MGR_ERR_IO || rc == MGR_ERR_INTERNAL ||
        rc == MGR_ERR_INTERRUPTED) { /* says nothing of it */
        *err = why;
        return rc;
    }
    return mgr_buf_text(&v->refusal, why.msg, err);
}

static int open_directory(mgr_view *v, const char *path, bool optimizer, mgr_err *err)
{
    const char **names, *file;
    size_t n, found = 0;
    const mgr_source_format *const format = mgr_source_probe(path);
    if (format) {
        mgr_config config = plain_config(path, "refuse");
        config.source.planes = optimizer ? MGR_PLANES_FOUND : 0;
        return open_source(v, format, &config, err);
    }
    MGR_TRY(mgr_list_dir(path, &v->arena, &names, &n, err));
    v->format = "safetensors";
    for (size_t i = 0; i < n; i++) {
        if (!mgr_has_suffix(names[i], ".safetensors"))
            continue;
        MGR_TRY(mgr_arena_fmt(&v->arena, &file, err, "%s/%s", path, names[i]));
        MGR_TRY(read_file(v, file, mgr_safetensors_read, err));
        found++;
    }
    if (found == 0)
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "no checkpoint of a known format at '%s'", path);
    return MGR_OK;
}

int mgr_view_open(mgr_view *v, const char *path, bool optimizer, mgr_err *err)
{
    *v = (mgr_view){.path = path};
    if (!mgr_path_exists(path))
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "'%s' does not exist", path);
    return mgr_is_dir(path) ? open_directory(v, path, optimizer, err) : open_file(v, path, err);
}

int mgr_view_open_as(mgr_view *v, const mgr_source_format *format, const char *path,
                     unsigned planes, mgr_err *err)
{
    *v = (mgr_view){.path = path};
    mgr_config config = plain_config(path, "warn"); /* an output: its source was judged */
    config.source.planes = planes;
    return open_source(v, format, &config, err);
}

int mgr_view_open_config(mgr_view *v, const mgr_config *config, mgr_err *err)
{
    const char *const path = config->source.path;
    *v = (mgr_view){.path = path};
    if (!mgr_path_exists(path))
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "'%s' does not exist", path);
    const mgr_source_format *const format = strcmp(config->source.format, "auto") == 0
                                                ? mgr_source_probe(path)
                                                : mgr_source_find(config->source.format);
    if (!format)
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "no checkpoint of a known format at '%s'", path);
    return open_source(v, format, config, err);
}

void mgr_view_close(mgr_view *v)
{
    mgr_layout_clear(&v->layout);
    mgr_tensors_clear(&v->tensors);
    mgr_buf_clear(&v->split);
    mgr_buf_clear(&v->refusal);
    mgr_catalogue_clear(&v->cat);
    mgr_arena_clear(&v->arena);
}

static int experts_text(const mgr_model *m, mgr_buf *out, mgr_err *err)
{
    const uint64_t moe = mgr_model_moe_layers(m);
    if (m->experts == 0)
        return MGR_OK;
    MGR_TRY(mgr_buf_fmt(out, err, ", %llu experts", (unsigned long long)m->experts));
    if (mgr_model_expert_ffn(m) != m->ffn)
        MGR_TRY(mgr_buf_fmt(out, err, " of %llu", (unsigned long long)mgr_model_expert_ffn(m)));
    if (moe != m->layers)
        MGR_TRY(mgr_buf_fmt(out, err, " in %llu layers", (unsigned long long)moe));
    return mgr_buf_fmt(out, err, ", top %llu", (unsigned long long)m->top_k);
}

int mgr_view_model(const mgr_model *m, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_buf_fmt(out, err,
                        "%llu layers, hidden %llu, ffn %llu, %llu heads in %llu groups of %llu",
                        (unsigned long long)m->layers, (unsigned long long)m->hidden,
                        (unsigned long long)m->ffn, (unsigned long long)m->heads,
                        (unsigned long long)m->kv_groups, (unsigned long long)m->head_dim));
    MGR_TRY(experts_text(m, out, err));
    MGR_TRY(mgr_buf_fmt(out, err, ", vocabulary %llu%s, %s", (unsigned long long)m->vocab,
                        m->tied ? ", tied" : "", mgr_dtype_name(m->dtype)));
    for (size_t i = 0; mgr_model_feature(m, i); i++)
        MGR_TRY(mgr_buf_fmt(out, err, "%s%s", i ? ", " : "; with ", mgr_model_feature(m, i)));
    return MGR_OK;
}

int mgr_view_types(const mgr_layout *layout, mgr_buf *out, mgr_err *err)
{
    uint32_t count[MGR_DTYPE_COUNT] = {0};
    for (uint32_t i = 0; i < layout->tensors->n; i++)
        count[layout->types[i]]++;
    for (int d = 0; d < MGR_DTYPE_COUNT; d++)
        if (count[d] && (mgr_dtype)d != layout->dtype)
            MGR_TRY(mgr_buf_fmt(out, err, "; %s: %u of %u tensors", mgr_dtype_name((mgr_dtype)d),
                                count[d], layout->tensors->n));
    return MGR_OK;
}

uint64_t mgr_view_elements(const mgr_stored *s)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < s->ndim; d++)
        n *= s->shape[d];
    return n;
}

uint64_t mgr_view_bytes(const mgr_stored *s)
{
    return mgr_view_elements(s) * mgr_dtype_size(s->dtype);
}

const char *mgr_view_shape(const mgr_stored *s, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (uint32_t d = 0; d < s->ndim && used < size; d++)
        used += (size_t)snprintf(out + used, size - used, "%s%llu", d ? ", " : "",
                                 (unsigned long long)s->shape[d]);
    if (used < size)
        snprintf(out + used, size - used, "]");
    return out;
}
