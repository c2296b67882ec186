#include "run/inspect.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "fmt/safetensors.h"
#include "fmt/torch_file.h"
#include "io/file.h"
#include "run/source.h"

/* What is shown. Without a model only the tensors are. */
typedef struct view {
    mgr_catalogue cat;
    mgr_arena arena;
    const char *format;
    mgr_buf layout;  /* one line on the split, empty if unknown */
    mgr_buf refusal; /* why it cannot be a source, empty if it can or that was not asked */
    mgr_model model;
    bool has_model;
} view;

typedef int (*file_reader)(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                           mgr_err *err);

static int read_file(view *v, const char *path, file_reader read_header, mgr_err *err)
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
static int open_file(view *v, const char *path, mgr_err *err)
{
    const bool safetensors = mgr_has_suffix(path, ".safetensors");
    v->format = safetensors ? "safetensors" : "torch";
    return read_file(v, path,
                     safetensors                    ? mgr_safetensors_read
                     : mgr_has_suffix(path, ".bin") ? mgr_torch_file_read_flat
                                                    : mgr_torch_file_read,
                     err);
}

static int open_source(view *v, const mgr_source_format *format, const char *path, mgr_err *err)
{
    mgr_config config = {0};
    mgr_source_files files;
    void *state = NULL;
    snprintf(config.source.path, sizeof config.source.path, "%s", path);
    snprintf(config.source.iteration, sizeof config.source.iteration, "latest");
    config.model.bos_token_id = config.model.eos_token_id = -1;
    MGR_TRY(format->find(&config, &v->arena, &files, err));
    for (size_t i = 0; i < files.n; i++)
        MGR_TRY(read_file(v, files.paths[i], format->read, err));
    v->format = format->name;
    /* a checkpoint that cannot be a source can still be looked at */
    mgr_err why = MGR_ERR_INIT;
    v->has_model = format->describe(&v->cat, &config, &state, &v->model, &why) == MGR_OK;
    const int rc = v->has_model ? format->summary(state, &v->layout, err)
                                : mgr_buf_text(&v->refusal, why.msg, err);
    if (v->has_model)
        format->release(state);
    return rc;
}

static int open_directory(view *v, const char *path, mgr_err *err)
{
    const char **names, *file;
    size_t n, found = 0;
    const mgr_source_format *const format = mgr_source_probe(path);
    if (format)
        return open_source(v, format, path, err);
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

static uint64_t elements(const mgr_stored *s)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < s->ndim; d++)
        n *= s->shape[d];
    return n;
}

static const char *shape_text(const mgr_stored *s, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (uint32_t d = 0; d < s->ndim && used < size; d++)
        used += (size_t)snprintf(out + used, size - used, "%s%llu", d ? ", " : "",
                                 (unsigned long long)s->shape[d]);
    if (used < size)
        snprintf(out + used, size - used, "]");
    return out;
}

static const char *type_text(const mgr_stored *s)
{
    const char *const name = mgr_dtype_name(s->dtype);
    return name ? name : "other";
}

static void print_tensors(const view *v)
{
    int width = 20;
    for (size_t i = 0; i < v->cat.n_stored; i++) {
        const int len = (int)strlen(v->cat.stored[i].name);
        width = len > width && len < 100 ? len : width;
    }
    for (uint32_t f = 0; f < v->cat.n_files; f++) {
        char bytes[32], shape[128];
        printf("\n%s  %s\n", v->cat.files[f].path,
               mgr_format_bytes(v->cat.files[f].bytes, bytes, sizeof bytes));
        for (size_t i = 0; i < v->cat.n_stored; i++) {
            const mgr_stored *const s = &v->cat.stored[i];
            if (s->file == f)
                printf(
                    "  %-*s  %-8s  %-18s %10s\n", width, s->name, type_text(s),
                    shape_text(s, shape, sizeof shape),
                    mgr_format_bytes(elements(s) * mgr_dtype_size(s->dtype), bytes, sizeof bytes));
        }
    }
}

static void print_text(const view *v, const mgr_inspect_options *o)
{
    const mgr_model *const m = &v->model;
    uint64_t count = 0, bytes = 0;
    char text[32];
    for (size_t i = 0; i < v->cat.n_stored; i++) {
        count += elements(&v->cat.stored[i]);
        bytes += elements(&v->cat.stored[i]) * mgr_dtype_size(v->cat.stored[i].dtype);
    }
    printf("path      %s\nformat    %s, %zu files%s%s\n", o->path, v->format, v->cat.n_files,
           v->layout.len ? ": " : "", v->layout.len ? v->layout.data : "");
    if (v->refusal.len)
        printf("source    not one for mgr-upcycle: %s\n", v->refusal.data);
    if (v->has_model)
        printf("model     %llu layers, hidden %llu, ffn %llu, %llu heads in %llu groups of %llu, "
               "vocabulary %llu%s, %s\n",
               (unsigned long long)m->layers, (unsigned long long)m->hidden,
               (unsigned long long)m->ffn, (unsigned long long)m->heads,
               (unsigned long long)m->kv_groups, (unsigned long long)m->head_dim,
               (unsigned long long)m->vocab, m->tied ? ", tied" : "", mgr_dtype_name(m->dtype));
    printf("tensors   %zu stored, %llu elements, %s\n", v->cat.n_stored, (unsigned long long)count,
           mgr_format_bytes(bytes, text, sizeof text));
    if (!o->summary)
        print_tensors(v);
}

static json_t *shape_json(const mgr_stored *s)
{
    json_t *const shape = json_array();
    for (uint32_t d = 0; d < s->ndim; d++)
        json_array_append_new(shape, json_integer((json_int_t)s->shape[d]));
    return shape;
}

static int print_json(const view *v, mgr_err *err)
{
    mgr_buf text = {0};
    json_t *const files = json_array();
    for (uint32_t f = 0; f < v->cat.n_files; f++) {
        json_t *const tensors = json_array();
        for (size_t i = 0; i < v->cat.n_stored; i++) {
            const mgr_stored *const s = &v->cat.stored[i];
            if (s->file == f)
                json_array_append_new(
                    tensors, json_pack("{s:s,s:s,s:o,s:I}", "name", s->name, "dtype", type_text(s),
                                       "shape", shape_json(s), "offset", (json_int_t)s->offset));
        }
        json_array_append_new(files,
                              json_pack("{s:s,s:I,s:o}", "path", v->cat.files[f].path, "bytes",
                                        (json_int_t)v->cat.files[f].bytes, "tensors", tensors));
    }
    json_t *const root = json_pack("{s:s,s:s,s:o}", "format", v->format, "layout",
                                   v->layout.len ? v->layout.data : "", "files", files);
    const int rc = mgr_json_dump(root, 2, &text, err);
    if (rc == MGR_OK)
        fputs(text.data, stdout);
    json_decref(root);
    mgr_buf_clear(&text);
    return rc;
}

int mgr_inspect(const mgr_inspect_options *o, mgr_err *err)
{
    view v = {0};
    int rc;
    if (!mgr_path_exists(o->path))
        rc = mgr_fail(err, MGR_ERR_NOT_FOUND, "'%s' does not exist", o->path);
    else
        rc = mgr_is_dir(o->path) ? open_directory(&v, o->path, err) : open_file(&v, o->path, err);
    if (rc == MGR_OK && o->json)
        rc = print_json(&v, err);
    else if (rc == MGR_OK)
        print_text(&v, o);
    mgr_buf_clear(&v.layout);
    mgr_buf_clear(&v.refusal);
    mgr_catalogue_clear(&v.cat);
    mgr_arena_clear(&v.arena);
    return rc;
}
